"""Problems and the exit code that they lead to."""

import itertools

import pytest

from sdjob.problems import JobError, Problem, bad_input, bad_output, bad_setting, exit_code, no_hardware

ALL = [make("what", "found", "remedy") for make in (bad_setting, bad_input, no_hardware, bad_output)]


@pytest.mark.parametrize("problems", list(itertools.permutations(ALL)))
def test_the_first_of_64_66_69_73_wins(problems):
    assert exit_code(problems) == 64
    assert exit_code([p for p in problems if p.code != 64]) == 66
    assert exit_code([p for p in problems if p.code in (69, 73)]) == 69
    assert exit_code([p for p in problems if p.code == 73]) == 73


def test_no_problem_is_0():
    assert exit_code([]) == 0


def test_codes_of_a_run_come_after_those_before_its_start():
    memory = Problem(71, "memory", "found", "remedy")
    assert exit_code([memory]) == 71
    assert exit_code([memory, bad_output("o", "f", "r")]) == 73


def test_an_error_carries_every_problem_once_and_sorted():
    error = JobError([ALL[3], ALL[0], ALL[0], ALL[1]])
    assert [problem.code for problem in error.problems] == [64, 66, 73]
    assert error.code == 64
    assert JobError(ALL[2]).problems == (ALL[2],)


def test_what_found_remedy():
    assert str(bad_setting("lr", "found 'x'", "Write a number.")) == "lr: found 'x'\n    → Write a number."
    assert ALL[0].to_dict() == {"subject": "what", "found": "found", "remedy": "remedy", "code": 64}


@pytest.mark.parametrize(
    ("remedy", "sentence"),
    [
        ("copy it again", "Copy it again."),
        ("Mount it.", "Mount it."),
        ("did you mean b?", "Did you mean b?"),
        ("caption_column=text names it", "caption_column=text names it."),
    ],
)
def test_the_remedy_for_an_input_is_a_sentence(remedy, sentence):
    assert bad_input("a", "b", remedy).remedy == sentence
