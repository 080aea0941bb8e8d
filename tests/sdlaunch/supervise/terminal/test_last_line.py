"""The last line of a run, of every way it may end."""

from pathlib import Path

import pytest

from sdjob.output.checkpoint_files import MODEL, STATE
from sdjob.output.layout import OutputLayout, write_manifest
from sdjob.problems import bad_output, bad_setting
from sdlaunch.supervise.terminal import last_line


@pytest.fixture
def layout(tmp_path):
    """An output folder with a page, and two checkpoints, the last of which is damaged."""
    layout = OutputLayout(tmp_path)
    layout.page.write_text("<!doctype html>")
    for step in (20, 30):
        folder = layout.step_folder(step)
        folder.mkdir(parents=True)
        for name in (STATE, MODEL):
            (folder / name).write_text("{}")
        write_manifest(folder)
    (layout.step_folder(30) / MODEL).unlink()
    return layout


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ([0], "result: {checkpoint}; open {page}"),
        (
            [75, 130],
            "stopped: {checkpoint}/checkpoint-000020 is kept; the same command continues the job; open {page}",
        ),
        ([66, 69, 70, 71, 73], "failed: {checkpoint}/checkpoint-000020 is kept; open {page}"),
    ],
)
def test_a_run_says_what_is_kept_and_what_to_open(layout, codes, text):
    said = {last_line.of_ended(layout, code, layout.checkpoint) for code in codes}
    assert said == {text.format(checkpoint=layout.checkpoint, page=layout.page)}


def test_without_checkpoints_and_a_page(tmp_path):
    layout = OutputLayout(tmp_path)
    assert (
        last_line.of_ended(layout, 70, layout.checkpoint)
        == f"failed: no checkpoint is in {layout.checkpoint}"
    )
    assert last_line.of_ended(layout, 75, layout.checkpoint) == (
        f"stopped: no checkpoint is in {layout.checkpoint}; the same command starts the job"
    )


def test_a_refused_job_shows_its_page_or_how_to_check(layout):
    kept = f"not started: {layout.step_folder(20)} is kept"
    problem = bad_setting("lr", "x is not a number", "Write lr=1e-5.")
    assert last_line.of_refused(layout, [problem]) == f"{kept}; see it again: bash train.sh check"
    layout.failure.write_text("{}")
    assert last_line.of_refused(layout, [problem]) == f"{kept}; open {layout.page}"
    in_use = bad_output("OUTPUT_DIR", "is in use", "Wait.")
    assert last_line.of_refused(layout, [in_use]) == f"{kept}; see it again: bash train.sh check"


def test_an_output_folder_that_cannot_be_read(layout, monkeypatch):
    monkeypatch.setattr(last_line, "step_folders", lambda layout: Path("/missing").stat())
    assert last_line.of_ended(layout, 73, layout.checkpoint) == f"failed: {layout.root} cannot be read"
    monkeypatch.setattr(last_line, "_PATIENCE", 0.0)
    assert last_line.of_ended(layout, 75, layout.checkpoint) == f"stopped: {layout.root} cannot be read"


def test_a_hostile_name_does_nothing(tmp_path):
    text = last_line.of_ended(OutputLayout(tmp_path / "\x1b[2J"), 70, tmp_path)
    assert "\x1b" not in text and "\\x1b[2J" in text
