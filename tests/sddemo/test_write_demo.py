"""python -m sddemo writes ready mounts, quickly, without torch, and twice with the same result."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

import sddemo
from sddemo.image_reader import read, shows_subject
from sddemo.scenes import SIZE
from sddemo.write_demo import write_demo


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_mounts_hold_a_pipeline_and_images_of_the_subject(tmp_path: Path) -> None:
    write_demo(tmp_path)
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["safety_checker"] == [None, None]
    images = sorted((tmp_path / "dataset" / "instance").iterdir())
    assert 5 <= len(images) <= 6
    for path in images:
        image = Image.open(path)
        assert image.size == (SIZE, SIZE)
        assert shows_subject(image)
    assert not (tmp_path / "dataset_captioned").exists()


def test_captioned_images_show_what_their_captions_say(tmp_path: Path) -> None:
    write_demo(tmp_path, captioned=12)
    lines = (tmp_path / "dataset_captioned" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    for row in map(json.loads, lines):
        shape, colour, ground = read(Image.open(tmp_path / "dataset_captioned" / row["file_name"]))
        assert row["text"].split(" ", 1)[1] == f"{colour} {shape} on a {ground} ground"


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    write_demo(tmp_path, captioned=3)
    before = contents(tmp_path)
    write_demo(tmp_path, captioned=3)
    assert contents(tmp_path) == before


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['sddemo', sys.argv[1]]; "
        "runpy.run_module('sddemo', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mounts")],
        cwd=Path(sddemo.__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "a sks circle" in done.stdout
    assert (tmp_path / "mounts" / "model" / "model_index.json").exists()
