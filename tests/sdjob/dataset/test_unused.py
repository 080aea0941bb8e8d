"""Whatever looks like data and is not used is said, with its number and examples."""

import shutil

import pytest

from sdjob.dataset import unused as unused_module
from sdjob.dataset.unused import find_unused, rows_in
from sdjob.problems import JobError, bad_input
from tests.support.datasets import find, jsonl, parquet, table, write_image

NEVER = float("inf")


def unused(root, **options):
    search = find_unused(find(root, **options), root, NEVER)
    assert search.is_whole
    return [str(each) for each in search.unused]


@pytest.fixture
def captioned(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x")
    return tmp_path


def test_nothing_is_said_where_everything_is_used(captioned):
    for name in ("README.md", "LICENSE", ".hidden.png", "dataset_infos.json", "a.npz"):
        (captioned / name).write_text("x")
    assert unused(captioned) == [] == unused(captioned, captions=False)


def test_images_without_a_line(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png", "sub/d.png"):
        write_image(tmp_path / name)
    jsonl(tmp_path, {"file_name": "./a.png", "text": "x"}, {"file_name": "sub/c.png", "text": "x"})
    assert unused(tmp_path) == ["2 images without a line in metadata.jsonl: b.png, sub/d.png"]


def test_images_in_other_folders(captioned):
    for name in ("sub/c.png", "sub/deep/d.png", "sub/e.JPG", "sub/f.png"):
        write_image(captioned / name)
    below = "4 images in folders below the one that is used: sub/c.png, sub/e.JPG, sub/f.png and 1 more"
    assert unused(captioned) == unused(captioned, captions=False) == [below]
    root = captioned / "all"
    root.mkdir()
    shutil.copytree(captioned / "sub", root / "bare")
    shutil.copytree(captioned, root / "set", ignore=lambda *_: {"all", "sub"})
    assert unused(root) == [
        "4 images in other folders: bare/c.png, bare/e.JPG, bare/f.png and 1 more",
    ]


def test_captions_without_an_image(captioned):
    for name in ("c.txt", "a.caption", "a.png.txt"):
        (captioned / name).write_text("x")
    (found,) = unused(captioned)
    assert (
        found.startswith("3 captions without an image, or next to another caption") and "a.caption" in found
    )


@pytest.mark.parametrize(
    "name", ["metadata.json", "captions.json", "meta_cap.json", "meta_lat.json", "my.CSV", "a.parquet"]
)
def test_tables_that_are_not_read(captioned, name):
    (captioned / name).write_text("x")
    if name == "a.parquet":
        (captioned / name).rename(captioned / "x")
        jsonl(captioned, {"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "x"})
        (captioned / "x").rename(captioned / name)
    assert any(
        found.startswith("1 table not read (captions come from metadata.jsonl, ") and name in found
        for found in unused(captioned)
    )


def test_the_second_metadata_file(tmp_path):
    write_image(tmp_path / "a.png")
    jsonl(tmp_path, {"file_name": "a.png", "text": "x"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,y\n")
    (found,) = unused(tmp_path)
    assert found.startswith("1 table not read") and found.endswith(": metadata.csv")


def test_archives(captioned):
    (captioned / "more.zip").write_text("x")
    assert unused(captioned) == ["1 archive not unpacked: more.zip"]


def test_other_splits_with_their_rows(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", table(3))
    parquet(tmp_path / "data" / "test-00000-of-00002.parquet", table(4))
    parquet(tmp_path / "data" / "test-00001-of-00002.parquet", table(5))
    parquet(tmp_path / "data" / "more.parquet", table(5))
    search = find_unused(find(tmp_path), tmp_path, NEVER)
    of_test, other = sorted(search.unused, key=lambda each: not each.split)
    shown = "data/test-00000-of-00002.parquet, data/test-00001-of-00002.parquet"
    assert (
        str(of_test) == f"2 tables of the split test: {shown}" and rows_in(tmp_path, of_test) == " (9 rows)"
    )
    assert str(other) == "1 table of no split: data/more.parquet"
    path = tmp_path / "data" / "test-00000-of-00002.parquet"
    for damaged in (b"damaged", path.read_bytes().replace(b"image", b"\x80mage")):
        path.write_bytes(damaged)
        assert rows_in(tmp_path, of_test) == ""


def test_tables_that_are_left_out_are_read_in_another_process_too(tmp_path, monkeypatch):
    """A footer may end the process that reads it."""
    for name in ("train", "test"):
        parquet(tmp_path / f"{name}.parquet", table(3))
    (of_test,) = find_unused(find(tmp_path), tmp_path, NEVER).unused

    def dies(*_: object, subject: str) -> int:
        raise JobError(bad_input(subject, "ends the process that reads it", "copy it again"))

    monkeypatch.setattr(unused_module, "in_child", dies)
    assert rows_in(tmp_path, of_test) == ""


@pytest.mark.parametrize("kind", ["folders", "metadata"])
def test_images_of_other_splits(tmp_path, kind):
    for name in ("Train/a.png", "Validation/b.png", "Validation/c.png"):
        write_image(tmp_path / name)
    if kind == "metadata":
        rows = ("Train/a.png", "Validation/b.png", "Validation/c.png")
        jsonl(tmp_path, *({"file_name": name, "text": "x"} for name in rows))
    expected = ["2 images of the split validation: Validation/b.png, Validation/c.png"]
    assert unused(tmp_path, captions=kind == "metadata") == expected


def test_a_search_ends_in_time(captioned):
    write_image(captioned / "sub" / "c.png")
    search = find_unused(find(captioned), captioned, 0)
    assert (search.unused, search.is_whole) == ((), False)


def test_images_that_need_another_package_or_program(captioned):
    for name in ("IMG_1.HEIC", "IMG_2.heic", "c.jxl", "raw/d.NEF"):
        write_image(captioned / name)
    assert unused(captioned) == [
        "1 image of a format that is not read (export as PNG or JPEG): raw/d.NEF",
        "2 images of a format that is not read (run `pip install pillow-heif`): IMG_1.HEIC, IMG_2.heic",
        "1 image of a format that is not read (run `pip install pillow-jxl-plugin`): c.jxl",
    ]
