"""Links that others have left in the output folder: what they lead to is neither written nor deleted."""

import json

import pytest

from sdjob.output.layout import OutputLayout
from sdtrain.checkpoint import start_point
from sdtrain.export import model_card
from tests.support.worker import snapshot

FOLDERS = (
    "checkpoint",
    "tensorboard",
    "trackers",
    "samples",
    "class_images",
    "exports",
    "logs",
    "run",
    "cache",
)
PROMPT = {"validation_prompts": ["a red cross"], "num_validation_images": 1}


@pytest.fixture
def canary(tmp_path):
    """A folder of the user with the names of what a job writes; it must not change."""
    folder = tmp_path / "mine"
    for name in ("checkpoint-000009", "unet", "checkpoint-000001"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("mine")
    (folder / "letter").write_text("mine")
    before = snapshot(folder), sorted(path.name for path in folder.rglob("*"))
    yield folder
    assert (snapshot(folder), sorted(path.name for path in folder.rglob("*"))) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_a_link_is_named_before_anything_is_loaded_or_moved(
    train, tmp_path, canary, capsys, name
):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / name).symlink_to(canary)
    output = train(code=73)
    error = capsys.readouterr().err
    assert f"OUTPUT_DIR: {output / name} is a link to {canary}" in error and "Remove the link" in error
    assert [path.name for path in output.iterdir()] == [name]


LATE = {  # planted in the last step → where it is named
    "checkpoint": "checkpoint",
    "samples": "samples",
    "tensorboard": None,  # its file is open already, as are these
    "run/metrics.jsonl": None,
}


@pytest.mark.parametrize("name", LATE)
def test_a_link_that_comes_while_the_run_is_going_on_is_not_followed(
    train, at_step, tmp_path, canary, capsys, name
):
    output = tmp_path / "output"

    def plant() -> None:
        (output / name).rename(tmp_path / "moved")
        (output / name).symlink_to(canary / "letter" if "." in name else canary)

    at_step(3, plant)
    train(code=73 if LATE[name] else 0, **PROMPT)
    if LATE[name]:
        assert f"{output / name} is a link to {canary}" in capsys.readouterr().err


def test_links_in_the_place_of_files_and_temporary_folders_give_way(train, tmp_path, canary):
    """Whole files take the place of a link; what a killed process may have left is removed, never entered."""
    output = train(max_train_steps=1, checkpointing_steps=1, **PROMPT)
    layout = OutputLayout(output)
    wanted = snapshot(train("undisturbed", max_train_steps=2, checkpointing_steps=1, **PROMPT) / "checkpoint")
    folders = (
        "unet",
        "vae",
        ".export.tmp",
        ".checkpoint-000002.tmp",
        ".checkpoint-000001.old",
        "checkpoint-000002",
    )
    files = ("model_index.json", "README.md", model_card.SAMPLES)
    for name in (*folders, *files):
        path = layout.checkpoint / name
        if path.exists():
            path.rename(tmp_path / f"was {name}")
        path.symlink_to(canary / "unet" if name in folders else canary / "letter")
    for path in (layout.report, layout.page, layout.before_after, layout.samples / "prompts.json"):
        path.unlink(missing_ok=True)
        path.symlink_to(canary / "letter")
    train(max_train_steps=2, checkpointing_steps=1, checkpoints_total_limit=1, **PROMPT)
    assert not [
        path for path in layout.checkpoint.iterdir() if path.is_symlink() or path.name.startswith(".")
    ]
    assert json.loads(layout.report.read_text())["steps"] == 2
    done = {n: h for n, h in snapshot(layout.checkpoint).items() if n.endswith((".safetensors", ".pt"))}
    assert done and done == {name: wanted[name] for name in done}


def test_an_earlier_run_is_moved_to_a_folder_of_its_own(train, canary, tmp_path):
    output = train(max_train_steps=1)
    (output / "earlier-1").symlink_to(tmp_path / "nowhere")
    aside = start_point.move_aside(OutputLayout(output), None)
    assert aside == output / "earlier-2"
    assert not (tmp_path / "nowhere").exists()
