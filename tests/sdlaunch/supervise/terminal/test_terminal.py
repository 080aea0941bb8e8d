"""A terminal that takes nothing, or has gone, holds up neither the job nor its stop."""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from sdlaunch.supervise.terminal.terminal import Terminal
from tests.sdlaunch.workspace import clean_environment, launch
from tests.support import screen
from tests.support.launcher import DRIVER, PRELUDE, Launched


def test_a_reader_that_takes_nothing_is_not_waited_for():
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as out:
        terminal = Terminal(out)
        begin = time.monotonic()
        for _ in range(20_000):
            terminal.show("x" * 100)
        terminal.close(0.2)
        assert time.monotonic() - begin < 5
    assert b"x" * 100 + b"\n" in os.read(ours, 300)
    os.close(ours)


def test_lines_that_found_no_place_are_counted():
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as out:
        terminal = Terminal(out)
        for _ in range(20_000):
            terminal.show("x" * 100)
    os.set_blocking(ours, False)
    shown, until = "", time.monotonic() + 20
    while accounted_for(shown) < 20_000 and time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            shown += os.read(ours, 1 << 16).decode(errors="replace")
    terminal.close(0.1)
    os.close(ours)
    assert accounted_for(shown) == 20_000
    assert shown.count("x" * 100) < 20_000


def accounted_for(shown: str) -> int:
    """Lines that were shown, or were said to be in the log only."""
    left_out = re.findall(r" (\d+) lines are in the log only\n", shown)
    return shown.count("x" * 100 + "\n") + sum(map(int, left_out))


def test_without_a_terminal_nothing_is_shown(capfd):
    terminal = Terminal(None)
    terminal.show("nothing")
    terminal.close()
    assert capfd.readouterr() == ("", "")


def test_a_progress_line_stays_below_all_others_until_it_is_kept_or_removed():
    def use(terminal):
        for done in (1, 1, 2):
            terminal.show(f"step {done}/2", progress=True)
        terminal.show("saved")
        terminal.keep()
        terminal.show("load", progress=True)
        terminal.show("", progress=True)
        terminal.show("result")

    clear = "\r\x1b[K"
    written = screen.of_terminal(use)
    assert written == (f"step 1/2{clear}step 2/2{clear}saved\r\nstep 2/2\r\nload{clear}result\r\n")
    assert screen.lines(written) == ["saved", "step 2/2", "result", ""]


def test_the_width_is_that_of_the_terminal_and_a_dumb_one_rewrites_nothing(tmp_path):
    widths = []
    screen.of_terminal(lambda terminal: widths.append(terminal.width), columns=33)
    screen.of_terminal(lambda terminal: widths.append(terminal.width), columns=0)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as out, (tmp_path / "log").open("w") as file:
        in_place = [Terminal(out, environ).in_place for environ in ({"TERM": "xterm"}, {"TERM": "dumb"}, {})]
        terminal = Terminal(file, {"TERM": "xterm"})
        terminal.show("1/2", progress=True)
        terminal.close()
    os.close(ours)
    assert (widths, in_place) == ([33, 80], [True, False, False])
    assert (tmp_path / "log").read_text() == "1/2\n"


def started(tmp_path: Path, workspace: dict[str, str], script: str, **options) -> Launched:
    (tmp_path / "fake.py").write_text(PRELUDE + script)
    argv = (*DRIVER, str(tmp_path / "fake.py"))
    return Launched(argv, tmp_path / "output", clean_environment(**workspace), **options)


def test_a_job_whose_reader_is_stuck_still_stops_in_order(tmp_path, workspace):
    run = started(
        tmp_path,
        workspace,
        "say('[rank 0] ready')\nfor _ in range(15_000): say('[rank 0] ' + 'x' * 99)\n"
        "assert asked(); note(0, 75)",
    )
    run.until("ready")
    run.process.terminate()
    assert run.process.wait(60) == 75
    run.process.communicate()
    assert "SIGTERM: saving and stopping" in run.log


def test_a_job_whose_reader_has_gone_goes_on(tmp_path, workspace):
    run = started(
        tmp_path, workspace, "say('[rank 0] ready'); time.sleep(0.5); say('[rank 0] on'); note(0, 75)"
    )
    run.until("ready")
    assert run.process.stdout
    run.process.stdout.close()
    assert run.process.wait(60) == 75
    assert "[rank 0] on" in run.log


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path, workspace):
    run = started(
        tmp_path,
        workspace,
        "say('[rank 0] ready'); assert not asked(1)",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    run.until("ready")
    run.process.send_signal(signal.SIGHUP)
    run.end(0)


def test_closed_standard_streams(workspace, tmp_path):
    closed = subprocess.run(
        ["bash", "-c", f"exec {DRIVER[0]} {Path(__file__).parents[4] / 'entrypoint.py'} check >&- 2>&- <&-"],
        env=clean_environment(**workspace),
    )
    assert closed.returncode == launch("check", **workspace).returncode == 0
