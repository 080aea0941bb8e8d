"""Tests of rank_pipes: whatever processes write becomes whole lines of bounded length, with their ranks."""

import os
import subprocess
import sys
import threading

import pytest

from sdjob import protocol
from sdlaunch.supervise import rank_pipes
from sdlaunch.supervise.rank_pipes import _BLOCK, _LONGEST, _LineSplitter
from tests.sdlaunch.workspace import HOME


def split(*blocks, size=_BLOCK):
    """The lines of these blocks, read so many bytes at a time."""
    output, data = _LineSplitter(), b"".join(blocks)
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return [line for part in parts for line in output.lines(part)] + list(output.rest())


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_of_any_end_in_blocks_of_any_size(size):
    said = b"\0rank 3, attempt 0\na\r\n\nbar 1%\rbar 2%\rdone\nno end"
    assert split(said, size=size) == [(3, b"a"), (3, b""), (3, b"bar 1%\t"), (3, b"done"), (3, b"no end")]


def test_a_restart_is_marked_even_after_words_without_an_end():
    said = [protocol.introduction(1, 0), b"terminate called", protocol.introduction(1, 2), b"again\n"]
    assert split(*said) == [(1, b"terminate called"), (1, b"==== restart 2 ===="), (1, b"again")]


def test_a_long_line_is_cut_between_words_and_nothing_of_it_is_lost():
    words = b" ".join(b"word%d" % number for number in range(50_000))
    lines = [line for _, line in split(words, b"\nnext\n", size=1000)]
    assert lines[-1] == b"next"
    assert b" ".join(lines[:-1]) == words
    assert max(map(len, lines)) <= _LONGEST


def test_no_part_of_a_word_is_left_that_is_too_long_to_be_searched_for_secrets():
    lines = [line for _, line in split(b"a " + b"x" * _LONGEST * 3 + b"secret b\nnext\n", size=1000)]
    assert lines == [b"a", b"(a word of more than %d bytes is left out)" % _LONGEST, b"b", b"next"]


def test_binary_output_takes_bounded_memory():
    output = _LineSplitter()
    for _ in range(200):
        list(output.lines(os.urandom(1000).replace(b" ", b"").replace(b"\n", b"").replace(b"\r", b"")))
        assert len(output._rest) <= _LONGEST


def gathered(tmp_path, script, ranks=1):
    """The lines of processes that run this script as ranks, with torchrun silent."""
    with rank_pipes.opened(tmp_path, ranks) as pipes:
        variables = {
            **os.environ,
            **protocol.launcher_variables(pipes.folder),
            "PYTHONPATH": str(HOME / "project"),
        }
        code = "from sdjob import rank_output; rank_output.attach()\n" + script
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env={**variables, "LOCAL_RANK": str(rank), "RANK": str(rank + 8)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(ranks)
        ]
        ended, (torchrun, theirs) = threading.Event(), os.pipe()
        threading.Thread(target=lambda: ([each.wait() for each in started], ended.set())).start()
        lines = list(pipes.lines(torchrun, ended.is_set))
        os.close(theirs), os.close(torchrun)
    return lines


def test_the_last_words_of_a_crash_are_read(tmp_path):
    script = "import os; print('in', flush=True); os.write(2, b'terminate called'); os.abort()"
    assert gathered(tmp_path, script) == [(8, b"in"), (8, b"terminate called")]


def test_much_output_of_several_ranks_is_complete_and_each_line_has_its_rank(tmp_path):
    lines = gathered(tmp_path, "import os\nfor n in range(20_000): print(os.environ['RANK'], n)", ranks=2)
    for rank in (8, 9):
        assert [line for at, line in lines if at == rank] == [b"%d %d" % (rank, n) for n in range(20_000)]


def test_a_child_that_keeps_the_pipe_open_holds_up_nothing(tmp_path):
    script = "import subprocess, sys; subprocess.Popen(['sleep', '5']); print('done')"
    assert gathered(tmp_path, script) == [(8, b"done")]
