"""Exit codes and their meanings."""

from sdjob.exit_codes import MEANINGS, REFUSED, ExitCode, meaning_of


def test_every_exit_code_has_a_meaning_and_an_unknown_one_is_a_failed_training():
    assert set(MEANINGS) == set(ExitCode)
    assert len({meaning.name for meaning in MEANINGS.values()}) == len(ExitCode)
    assert meaning_of(66).name == "bad input"
    assert meaning_of(1) == meaning_of(139) == MEANINGS[ExitCode.TRAINING_FAILED]


def test_the_codes_of_refused_jobs_in_the_order_of_their_precedence():
    assert list(map(int, REFUSED)) == [64, 66, 69, 73]
    assert all(not MEANINGS[code].retry.startswith("yes") for code in REFUSED)


def test_codes_after_which_other_nodes_end_too():
    assert [int(code) for code, meaning in MEANINGS.items() if meaning.final] == [64, 66, 69, 71, 73]
