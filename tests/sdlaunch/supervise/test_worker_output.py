"""Tests of worker_output: which lines of torchrun a person sees, and which the log keeps."""

import re
from pathlib import Path

from sdjob import protocol
from sdlaunch.supervise.worker_output import Stream


class Shown:
    """A terminal that keeps what it is given."""

    def __init__(self):
        self.lines = []

    def show(self, text, *, progress=False):
        self.lines.append((text, progress))


def passed_on(tmp_path, lines, *, quiet=False):
    """What is shown of these lines, and what is logged."""
    shown = Shown()
    with Stream(tmp_path / "node-0.log", shown, ("hf_secret",)) as stream:
        stream.quiet = quiet
        stream.pump(f"{line}\n".encode() for line in lines)
    logged = [line.partition(" ")[2] for line in (tmp_path / "node-0.log").read_text().splitlines()]
    assert list(stream.tail) == logged
    return shown.lines, logged


def test_lines_of_rank_0_are_shown_without_their_rank_and_torchrun_is_only_logged(tmp_path):
    lines = ["[rank 0] a", "[rank 11] b", "W1128 torchrun's own", "[rank 0] [rank 0] torn"]
    assert passed_on(tmp_path, lines) == ([("a", False), ("[rank 11] b", False), ("torn", False)], lines)


def test_progress_is_shown_as_such_whatever_its_words(tmp_path):
    lines = [f"[rank 0] {protocol.progress_line('any words')}", "[rank 0] step   1/9  loss 1"]
    assert passed_on(tmp_path, lines)[0] == [("any words", True), ("step   1/9  loss 1", False)]


def test_the_traceback_of_one_rank_hides_no_line_of_another(tmp_path):
    lines = ["[rank 1] Traceback (most recent call last):", '[rank 1]   File "x.py", line 1', "[rank 0] on",
             "[rank 1] ", "[rank 1] ValueError: x", "[rank 1] on"]  # fmt: skip
    shown, logged = passed_on(tmp_path, lines)
    assert shown == [("on", False), ("[rank 1] ValueError: x", False), ("[rank 1] on", False)]
    assert logged == lines


def test_secrets_are_redacted_and_a_quiet_stream_still_logs(tmp_path):
    assert passed_on(tmp_path, ["[rank 0] hf_secret"], quiet=True) == ([], ["[rank 0] [redacted]"])


def test_every_line_of_a_text_is_logged_with_its_time_after_those_of_earlier_starts(tmp_path):
    for text in ("one\ntwo", "three"):
        with Stream(tmp_path / "log", Shown(), ()) as stream:
            stream.note(text)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["one", "two", "three"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)


def test_a_full_disk_ends_the_log_and_nothing_else():
    shown = Shown()
    with Stream(Path("/dev/full"), shown, ()) as stream:
        stream.pump([b"[rank 0] a\n"])
        stream.say("b")
    assert shown.lines == [("a", False), ("b", False)]
    assert list(stream.tail) == ["[rank 0] a"]
