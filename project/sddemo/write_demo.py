"""Write the embedded model and data as a ready set of mounts; needs neither torch nor the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from sddemo.scenes import caption, render, scenes
from sddemo.subject import instance_images

PIPELINE = Path(__file__).parent / "pipeline"


def write_demo(folder: Path, captioned: int = 0) -> None:
    """Writes `folder`/model and `folder`/dataset/instance, and `folder`/dataset_captioned if asked for.

    Doing it again changes nothing; files that are already there under other names are left alone.
    """
    shutil.copytree(PIPELINE, folder / "model", copy_function=shutil.copyfile, dirs_exist_ok=True)
    _write_images(folder / "dataset" / "instance", instance_images())
    if captioned:
        wanted = scenes(captioned, seed=0)
        names = _write_images(folder / "dataset_captioned", [render(scene) for scene in wanted])
        rows = (
            {"file_name": name, "text": caption(scene)} for name, scene in zip(names, wanted, strict=True)
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "dataset_captioned" / "metadata.jsonl").write_text(text, encoding="utf-8")


def _write_images(folder: Path, images: list[Image.Image]) -> list[str]:
    """Save images as numbered PNG files; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    return names
