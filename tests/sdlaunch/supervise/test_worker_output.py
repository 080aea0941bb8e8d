"""Tests of worker_output: which lines of torchrun a person sees, and which the log keeps."""

import errno
import time

import pytest

from sdjob import protocol
from sdjob.output.layout import OutputLayout
from sdjob.protocol import OutputLine
from sdlaunch.supervise import log_file
from sdlaunch.supervise.verdict import Ending, judge
from sdlaunch.supervise.worker_output import Stream


class Shown:
    """A terminal that keeps what it is given."""

    def __init__(self):
        self.lines = []

    def show(self, text, *, progress=False):
        self.lines.append((text, progress))


def passed_on(tmp_path, lines, *, quiet=False):
    """What is shown of these lines, what is logged for the node, and for each rank."""
    shown, layout = Shown(), OutputLayout(tmp_path)
    with Stream(layout, 1, shown, ("hf_secret",)) as stream:
        stream.quiet = quiet
        stream.pump((rank, line.encode()) for rank, line in lines)
    logged = without_times(layout.log(1))
    assert [str(line) for line in stream.tail] == logged
    return (
        shown.lines,
        logged,
        {path.stem: without_times(path) for path in (layout.logs / "node-1").glob("*")},
    )


def without_times(path):
    return [line.partition(" ")[2] for line in path.read_text().splitlines()]


def test_lines_of_rank_0_are_shown_without_their_rank_and_torchrun_is_only_logged(tmp_path):
    shown, logged, ranks = passed_on(tmp_path, [(0, "a"), (11, "b"), (None, "W1128 torchrun's own")])
    assert shown == [("a", False), ("[rank 11] b", False)]
    assert logged == ["[rank 0] a", "[rank 11] b", "W1128 torchrun's own"]
    assert ranks == {"rank-0": ["==== start ====", "a"], "rank-11": ["==== start ====", "b"]}


@pytest.mark.parametrize("word", ["No space left on device ", "DataLoader worker (pid "])
def test_long_lines_do_not_keep_the_launcher_from_its_verdict(tmp_path, word):
    """Patterns that begin everywhere in a line, and match nowhere, take the square of its length."""
    with Stream(OutputLayout(tmp_path), 1, Shown(), ()) as stream:
        stream.pump((0, (word * 3000).encode()) for _ in range(40))
    begin = time.process_time()
    judge(Ending(1, (), tuple(stream.tail)))
    assert time.process_time() - begin < 1


def test_progress_is_shown_as_such_whatever_its_words(tmp_path):
    lines = [(0, protocol.progress_line("any words")), (0, "step   1/9  loss 1")]
    assert passed_on(tmp_path, lines)[0] == [("any words", True), ("step   1/9  loss 1", False)]


def test_the_traceback_of_one_rank_hides_no_line_of_another(tmp_path):
    lines = [(1, "Traceback (most recent call last):"), (1, '  File "x.py", line 1'), (0, "on"),
             (1, ""), (1, "ValueError: x"), (1, "on")]  # fmt: skip
    shown, logged, _ = passed_on(tmp_path, lines)
    assert shown == [("on", False), ("[rank 1] ValueError: x", False), ("[rank 1] on", False)]
    assert logged == [f"[rank {rank}] {text}" for rank, text in lines]


def test_secrets_are_redacted_and_a_quiet_stream_still_logs(tmp_path):
    shown, logged, ranks = passed_on(tmp_path, [(0, "hf_secret")], quiet=True)
    assert (shown, logged, ranks["rank-0"][1:]) == ([], ["[rank 0] [redacted]"], ["[redacted]"])


def test_a_log_of_a_rank_that_cannot_be_opened_hides_no_line(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "node-1").write_text("not a folder")
    assert passed_on(tmp_path, [(0, "a"), (0, "b")])[:2] == (
        [("a", False), ("b", False)],
        ["[rank 0] a", "[rank 0] b"],
    )


def test_every_line_of_a_text_is_logged_after_those_of_earlier_starts(tmp_path):
    for text in ("one\ntwo", "three"):
        with Stream(OutputLayout(tmp_path), 0, Shown(), ()) as stream:
            stream.note(text)
    assert without_times(tmp_path / "logs" / "node-0.log") == ["one", "two", "three"]


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(log_file.os, "write", full)
    shown = Shown()
    with Stream(OutputLayout(tmp_path), 0, shown, ()) as stream:
        stream.pump([(0, b"a")])
        stream.say("b")
    assert shown.lines == [("a", False), ("b", False)]
    assert list(stream.tail) == [OutputLine(0, "a")]
