"""Folders of images: found whatever else is there, with captions in text files."""

import contextlib
import os
import time
import unicodedata

import pytest

from sdjob.problems import JobError
from tests.support.datasets import (
    captions,
    find,
    only,
    png,
    write_image,
)


def test_folder_ignores_stray_files(tmp_path):
    for name in ("b ü.JPG", "a.png", "c.Webp", "d.tiff"):
        write_image(tmp_path / name)
    for name in (".DS_Store", "._a.png", ".hidden.png", "Thumbs.db", "notes.txt", "e.mp4"):
        (tmp_path / name).write_text("stray")
    write_image(tmp_path / "folder.png" / "notes.md")
    info = find(tmp_path, captions=False)
    assert (info.format.name, info.num_examples, info.caption_column) == ("folder", 4, None)
    assert [path.name for path in info.files] == ["a.png", "b ü.JPG", "c.Webp", "d.tiff"]
    assert info.files[0] == tmp_path / "a.png" and info.files[-1].name == "d.tiff"


def test_images_come_by_name_in_whatever_order_they_are_listed(tmp_path, monkeypatch):
    """Ranks that list a folder in different orders would train on other images than they agreed on."""
    for name in "bca":
        write_image(tmp_path / f"{name}.png")
    scan = os.scandir

    @contextlib.contextmanager
    def backwards(path):
        with scan(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(os, "scandir", backwards)
    assert [path.name for path in find(tmp_path, captions=False).files] == ["a.png", "b.png", "c.png"]


def test_bare_images_have_no_captions(tmp_path):
    write_image(tmp_path / "a.png")
    problem = only(tmp_path)
    assert "1 of 1 images have no caption" in problem.found
    assert "metadata.jsonl" in problem.remedy and "recipe=dreambooth" in problem.remedy


def test_captions_in_text_files(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x")
    info = find(tmp_path)
    assert (info.format.name, info.num_examples, info.caption_column) == ("folder", 2, ".txt")
    write_image(tmp_path / "c.png")
    assert "1 of 3 images have no caption: c.png" in only(tmp_path).found


class _Entry:
    """A directory entry that can be asked for nothing that costs a system call."""

    def __init__(self, name):
        self.name = name

    def is_dir(self):
        return False


def test_big_folders_are_listed_without_a_stat_per_file(tmp_path, monkeypatch):
    """A million files take about 2 s; the bound leaves room for a slow machine."""
    names = [f"image {number:07d}.jpg" for number in range(200_000)]

    class Scan(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Scan(map(_Entry, names)))
    start = time.process_time()
    info = find(tmp_path, captions=False)
    assert time.process_time() - start < 3
    assert info.num_examples == 200_000 and info.files[-1].name == names[-1]


def test_captions_are_read_as_they_are_asked_for(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png())
        (tmp_path / f"{number}.txt").write_text(f"\ufeffcaption {number}\n", encoding="utf-8")
    assert captions(tmp_path, 2) == ["caption 0", "caption 1"]
    assert len(captions(tmp_path)) == 5
    (tmp_path / "1.txt").write_bytes(b"\xff")
    with pytest.raises(JobError) as caught:
        captions(tmp_path)
    assert "1.txt" in caught.value.problems[0].subject


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.Caption", "a.jpg.txt", "a.jpg.caption"])
def test_names_of_captions(tmp_path, name):
    write_image(tmp_path / "a.jpg")
    (tmp_path / name).write_text("of a")
    assert captions(tmp_path) == ["of a"]
    rows = find(tmp_path).format.open(find(tmp_path), None, lambda: None)
    assert rows.caption(0) == "of a"


def test_one_caption_is_read_of_several(tmp_path):
    write_image(tmp_path / "a.jpg")
    for name in ("a.TXT", "a.caption", "a.jpg.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    assert captions(tmp_path) == ["a.txt"]
    (tmp_path / "a.txt").unlink()
    assert captions(tmp_path) == ["a.TXT"]


@pytest.mark.parametrize(("image", "text"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_composed_in_one_name_and_not_in_the_other(tmp_path, image, text):
    write_image(tmp_path / unicodedata.normalize(image, "café.jpg"))
    (tmp_path / unicodedata.normalize(text, "café.txt")).write_text("x")
    assert captions(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "name", ["metadata.json", "captions.json", "meta_cap.json", "meta_lat.json", "data.CSV"]
)
def test_files_that_may_hold_captions_are_named(tmp_path, name):
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_text("{}")
    problem = only(tmp_path)
    assert problem.found.endswith(f"1 of 1 images have no caption: a.png; {name} is not read")
    assert "metadata.jsonl" in problem.remedy
