"""A checkpoint is complete when its manifest, written last, says so. Tests of layout.py and checkpoint_files.py."""

import json

import pytest

from sdjob.output.checkpoint_files import MANIFEST, MODEL, NUMBERS, OPTIMIZER, SETTINGS, SHARDS, STATE
from sdjob.output.layout import OutputLayout, defect_of, step_folders, write_manifest
from sdjob.problems import JobError, bad_input
from tests.sdjob.unprivileged import problems_as_user


@pytest.fixture
def layout(tmp_path):
    return OutputLayout(tmp_path)


def make(layout, step, manifest=True):
    folder = layout.step_folder(step)
    (folder / "inner").mkdir(parents=True)
    (folder / MODEL).write_bytes(b"weights")
    (folder / STATE).write_text("{}")
    (folder / "inner" / "more.bin").write_bytes(b"12345")
    if manifest:
        write_manifest(folder)
    return folder


def test_a_complete_folder_has_no_defect(layout):
    folder = make(layout, 5)
    assert defect_of(folder, hashes=False) is None
    assert defect_of(folder, hashes=True) is None
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {MODEL, STATE, "inner/more.bin"}


def test_what_this_user_may_not_read_is_a_defect(layout):
    make(layout, 1).chmod(0)
    closed = make(layout, 2) / SHARDS
    closed.mkdir()
    closed.chmod(0)

    def look():
        raise JobError([bad_input(each.path.name, each.defect, "") for each in step_folders(layout)])

    found = problems_as_user(look, layout.checkpoint)
    assert set(found) == {"checkpoint-000001", "checkpoint-000002"}
    assert all("cannot be read" in defect for defect in found.values())


def test_defects_are_named(layout):
    folder = make(layout, 5)
    (folder / MODEL).write_bytes(b"WEIGHTS")
    assert defect_of(folder, hashes=False) is None  # sizes only
    assert f"{MODEL} has changed" in defect_of(folder, hashes=True)
    (folder / MODEL).write_bytes(b"wei")
    assert "3 bytes instead of 7" in defect_of(folder, hashes=False)
    (folder / MODEL).unlink()
    assert "missing" in defect_of(folder, hashes=False)


def test_a_name_in_a_manifest_is_not_shown_in_full(layout):
    folder = make(layout, 5)
    files = {
        "x" * 100_000: {"bytes": 1, "sha256": ""},
        **json.loads((folder / MANIFEST).read_text())["files"],
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    assert len(defect_of(folder, hashes=False)) == 500


def test_the_state_is_compared_by_content_before_it_is_read(layout):
    """The launcher, which compares only sizes of weights, reads it."""
    folder = make(layout, 5)
    (folder / STATE).write_text("[]")
    assert defect_of(folder, hashes=False) == "state.json has changed since it was saved"


def test_a_manifest_names_state_and_weights_and_all_that_is_read(layout):
    folder = make(layout, 5, manifest=False)
    (folder / STATE).unlink()
    write_manifest(folder)
    assert defect_of(folder, hashes=False) == "manifest.json names no state.json"
    (folder / MODEL).unlink()
    write_manifest(folder)
    assert defect_of(folder, hashes=False) == "manifest.json names no state.json and no weights"
    (folder / STATE).touch()
    (folder / SHARDS).mkdir()
    (folder / SHARDS / "__0_0.distcp").touch()
    write_manifest(folder)
    assert defect_of(folder, hashes=True) is None
    (folder / "notes.txt").touch()  # of a user
    assert defect_of(folder, hashes=True) is None
    for name in (NUMBERS, SETTINGS, MODEL):
        (folder / name).touch()
        assert defect_of(folder, hashes=True) == f"{name} is not in manifest.json"
        (folder / name).unlink()


def test_a_path_in_the_manifest_vouches_for_that_file_alone(layout):
    folder = make(layout, 5, manifest=False)
    (folder / SHARDS).mkdir()
    (folder / SHARDS / "__0_0.distcp").touch()
    (folder / OPTIMIZER).mkdir()
    (folder / OPTIMIZER / "inner").touch()
    write_manifest(folder)
    (folder / OPTIMIZER / "inner").unlink()
    (folder / OPTIMIZER).rmdir()
    (folder / OPTIMIZER).touch()
    assert defect_of(folder, hashes=False) == f"{OPTIMIZER} is not in manifest.json"
    (folder / OPTIMIZER).unlink()
    write_manifest(folder)
    (folder / SHARDS / ".nfs0001").touch()  # of a file system, which nothing reads
    assert defect_of(folder, hashes=True) is None
    for name in ("__1_0.distcp", ".metadata"):
        (folder / SHARDS / name).touch()
        assert defect_of(folder, hashes=True) == f"{SHARDS}/{name} is not in manifest.json"
        (folder / SHARDS / name).unlink()


def test_a_folder_of_shards_next_to_whole_weights_is_a_defect(layout):
    """Readers would take it for the checkpoint."""
    folder = make(layout, 5)
    (folder / SHARDS).mkdir()
    assert defect_of(folder, hashes=False) == f"{SHARDS} is not in manifest.json"


def test_a_file_replaced_by_a_folder_is_a_defect(layout):
    folder = make(layout, 5)
    (folder / MODEL).unlink()
    (folder / MODEL).mkdir()
    assert defect_of(folder, hashes=False) == f"{MODEL} is not a file"


_DEEP = "[" * 100_000


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": {"a": 1}}', "\x00", _DEEP])
def test_a_broken_manifest_is_a_defect(layout, text):
    folder = make(layout, 5)
    (folder / MANIFEST).write_text(text)
    assert defect_of(folder, hashes=False)


def test_step_folders_are_found_newest_first(layout):
    assert step_folders(layout) == []
    make(layout, 500)
    make(layout, 1500, manifest=False)
    make(layout, 1000)
    make(layout, 1_000_000)
    (layout.checkpoint / "checkpoint-abc").mkdir()
    (layout.checkpoint / "checkpoint-000007").touch()
    (layout.checkpoint / ".checkpoint-002000.tmp").mkdir()
    found = step_folders(layout)
    assert [(folder.step, folder.defect is None) for folder in found] == [
        (1_000_000, True),
        (1500, False),
        (1000, True),
        (500, True),
    ]


def test_every_path_lies_below_the_root(layout):
    paths = [path for name, path in vars(layout).items() if name != "root"]
    assert len(paths) > 10
    assert all(layout.root in path.parents for path in paths)
