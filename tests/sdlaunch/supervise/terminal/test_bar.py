"""The bar on a terminal: what it says of a stage at each width, and when a stage leaves a line."""

import re
import time

import pytest

from sdjob.protocol import TRAINING, Heartbeat
from sdlaunch.supervise.terminal import bar
from sdlaunch.supervise.terminal.bar import Stages
from sdlaunch.supervise.terminal.terminal import Terminal
from tests.support import screen

NOTE = "mean loss 0.1234  lr 5.0e-06  1.2 it/s"
BAR = f"{'━' * 20}╺{'━' * 19}"
HALF = Heartbeat(1, TRAINING, 200, 200, 400, seconds_left=166.4, note=NOTE)


@pytest.fixture(autouse=True)
def colors(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def shown(beat: Heartbeat, width: int = 120, seconds: float = 0.0) -> str:
    """The bar so many seconds after this heartbeat."""
    stages = Stages()
    stages.see(beat, 100.0)
    return stages.bar(100.0 + seconds, width)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_counted_stage_has_its_count_eta_and_figures():
    assert plain(shown(HALF)) == f"train  200/400  eta 0:02:46  {BAR}  {NOTE}"
    assert "eta 0:02:36" in shown(HALF, seconds=10)
    assert "eta 0:00:00" in shown(HALF, seconds=500)


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (80, f"train  200/400  eta 0:02:46  ━━━━━╸━━━━━  {NOTE}"),
        (74, f"train  200/400  eta 0:02:46  {BAR}"),
        (40, "train  200/400  eta 0:02:46  ━━━━━╸━━━━━"),
        (34, "train  200/400  eta 0:02:46"),
        (16, "train  200/400"),
        (4, "trai"),
    ],
)
def test_on_a_narrow_terminal_the_less_important_is_left_out(width, text):
    line = plain(shown(HALF, width))
    assert (len(line) <= width, line.rstrip()) == (True, text)


def test_a_stage_that_counts_nothing_shows_its_time():
    assert re.fullmatch(r"export  0:01:05  ━{40}", plain(shown(Heartbeat(1, "export"), seconds=65)))
    assert plain(shown(Heartbeat(1, "load", None, 1, 3), seconds=5)).startswith("load  1/3  0:00:05  ━")


def test_no_color_leaves_no_color(monkeypatch):
    assert "\x1b[36m" in shown(HALF)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown(HALF))
    assert f"0:02:46  {'━' * 20}  {' ' * 20}" in plain(shown(HALF))


def test_what_others_wrote_into_a_heartbeat_does_nothing():
    line = shown(Heartbeat(1, "\x1b]0;x\a[red]s", None, 1, 2, float("nan"), "\x1b[2J\r\n"))
    assert plain(line).startswith("\\x1b]0;x\\x07[red]s  1/2  eta 0:00:00  ━")
    assert plain(line).endswith("  \\x1b[2J\\r ")
    assert not {"\r", "\n", "\a"} & {*line}


def seen(*beats: tuple[float, Heartbeat]) -> list[str | None]:
    stages = Stages()
    return [stages.see(beat, now) for now, beat in beats]


def test_a_stage_that_took_its_time_leaves_a_line():
    assert seen(
        (0, Heartbeat(1, "load", None, 1, 3)),
        (3, Heartbeat(1, "load", None, 2, 3)),
        (4, Heartbeat(1, "class images", None, 1, 48)),
        (64, Heartbeat(1, "export")),
        (64.5, Heartbeat(1, "validate", None, 1, 4)),
        (65, Heartbeat(1, "export")),
    ) == [None, None, "✓  load  3/3  0:00:04", "✓  class images  48/48  0:01:00", None, None]


def test_training_that_is_interrupted_is_complete_at_its_last_step():
    assert seen(
        (0, Heartbeat(1, TRAINING, 1, 1, 10)),
        (5, Heartbeat(1, "save", 5)),
        (8, Heartbeat(1, TRAINING, 6, 6, 10)),
        (11, Heartbeat(1, "save", 10)),
    ) == [None, None, "✓  save  0:00:03", "✓  train  10/10  0:00:08"]


def test_while_the_body_runs_the_terminal_follows_the_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(bar, "_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(bar, "_NOTABLE", 0.0)
    notes = tmp_path / "output" / "run" / "notes-0"
    notes.mkdir(parents=True)

    def job(terminal: Terminal) -> None:
        with bar.shown(notes, terminal):
            for stage in ("load", "export"):
                Heartbeat(1, stage).write(notes, 0)
                until_shown(terminal, stage)
        terminal.show("result: /output")

    def until_shown(terminal: Terminal, stage: str) -> None:
        until = time.monotonic() + 20
        while not terminal._progress.startswith(f"\x1b[1m{stage}") and time.monotonic() < until:
            time.sleep(0.01)

    written = screen.of_terminal(job)
    assert screen.lines(written) == ["✓  load  0:00:00", "result: /output", ""]
    assert {each.split()[0] for each in screen.frames(written)} == {"load", "✓", "export", "result:"}
