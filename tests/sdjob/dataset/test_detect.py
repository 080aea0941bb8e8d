"""A dataset is recognised, counted and sampled, or refused with everything that is wrong with it."""

import contextlib
import csv
import io
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdjob.dataset.detect import find_dataset, spread, verify_sample
from sdjob.dataset.formats.parquet import missing_shards, train_files
from sdjob.dataset.verify import verify_all
from sdjob.problems import JobError
from tests.sdjob.nobody import problems_as_nobody


def find(root, name=None, captions=True, image_column="image", caption_column="text"):
    return find_dataset(
        Path(root), name, captions=captions, image_column=image_column, caption_column=caption_column
    )


def problems(root, name=None, **options):
    with pytest.raises(JobError) as caught:
        find(root, name, **options)
    assert {problem.code for problem in caught.value.problems} == {66}
    return caught.value.problems


def only(root, name=None, **options):
    (problem,) = problems(root, name, **options)
    return problem


def png(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def write_image(path: Path, content=PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def jsonl(folder: Path, *rows) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(count, **columns) -> pa.Table:
    data = {
        "image": [{"bytes": PNG, "path": f"{number}.png"} for number in range(count)],
        "text": [f"caption {number}" for number in range(count)],
    }
    return pa.table({**data, **columns})


def parquet(path: Path, content: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


# --- folders of images -----------------------------------------------------------------------------


def test_folder_ignores_stray_files(tmp_path):
    for name in ("b ü.JPG", "a.png", "c.Webp", "d.tiff"):
        write_image(tmp_path / name)
    for name in (".DS_Store", "._a.png", ".hidden.png", "Thumbs.db", "notes.txt", "e.mp4"):
        (tmp_path / name).write_text("stray")
    write_image(tmp_path / "folder.png" / "notes.md")
    info = find(tmp_path, captions=False)
    assert (info.format, info.num_examples, info.caption_column) == ("folder", 4, None)
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
    assert (info.format, info.num_examples, info.caption_column) == ("folder", 2, ".txt")
    write_image(tmp_path / "c.png")
    assert "1 of 3 images have no caption: c.png" in only(tmp_path).found


def test_nothing_usable_says_what_was_found(tmp_path):
    for name in ("a.txt", "b.txt", "c.zip"):
        (tmp_path / name).write_text("x")
    problem = only(tmp_path, captions=False)
    assert "2 .txt, 1 .zip" in problem.found and "folder of images" in problem.remedy
    (tmp_path / "empty").mkdir()
    assert "holds nothing" in only(tmp_path, "empty").found
    assert "does not exist" in only(tmp_path / "no").found


# --- where it lies -----------------------------------------------------------------------------------


def test_it_is_found_below_the_mount(tmp_path):
    data = tmp_path / "Teyvat" / "data"
    parquet(data / "train-00000-of-00001.parquet", table(3))
    (tmp_path / "Teyvat" / "README.md").write_text("x")
    (data / "._train-00000-of-00001.parquet").write_bytes(b"what macOS leaves beside a copied file")
    for stray in (".cache", "lost+found", "__MACOSX"):
        parquet(tmp_path / stray / "train.parquet", table(1))
    for root, name in ((tmp_path, None), (tmp_path, "Teyvat"), (tmp_path, str(data)), (data, None)):
        assert find(root, name).path == data


def test_several_need_a_name(tmp_path):
    write_image(tmp_path / "cats" / "a.png")
    write_image(tmp_path / "big dogs" / "a.png")
    problem = only(tmp_path, captions=False)
    assert "2 datasets: big dogs, cats" in problem.found and "dataset_name=" in problem.remedy
    assert find(tmp_path, "big dogs", captions=False).num_examples == 1
    wrong = only(tmp_path, "birds", captions=False)
    assert "does not exist" in wrong.found and "big dogs, cats" in wrong.found


def test_the_only_captioned_one_is_chosen(tmp_path):
    write_image(tmp_path / "bare" / "a.png")
    write_image(tmp_path / "preview.png")
    jsonl(tmp_path / "captioned", {"file_name": "a.png", "text": "x"})
    write_image(tmp_path / "captioned" / "a.png")
    assert find(tmp_path).path == tmp_path / "captioned"
    assert find(tmp_path, captions=False).path == tmp_path


def test_train_is_chosen_among_splits(tmp_path):
    for split in ("train", "test", "validation"):
        write_image(tmp_path / "data" / split / f"{split}.png")
    assert find(tmp_path, captions=False).path == tmp_path / "data" / "train"


# --- metadata ----------------------------------------------------------------------------------------


def test_metadata_jsonl(tmp_path):
    write_image(tmp_path / "sub dir" / "ä.png")
    write_image(tmp_path / "z.png")
    write_image(tmp_path / "not listed.png")
    jsonl(
        tmp_path,
        {"file_name": "z.png", "text": "a z"},
        "",
        {"file_name": "./sub dir/ä.png", "text": "", "n": 1},
    )
    info = find(tmp_path)
    assert (info.format, info.num_examples, info.columns) == ("metadata", 2, ("file_name", "text", "n"))
    assert list(info.files) == [tmp_path / "sub dir/ä.png", tmp_path / "z.png"]
    assert info.caption_column == "text"
    assert (
        find(tmp_path, captions=False).num_examples == 2 and find(tmp_path, captions=False).format == "folder"
    )


def test_metadata_csv_with_byte_order_mark(tmp_path):
    write_image(tmp_path / "a.png")
    with (tmp_path / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("file_name", "prompt"), ("a.png", 'quoted, "ü"\nsecond line')])
    info = find(tmp_path, caption_column="prompt")
    assert (info.num_examples, info.columns) == (1, ("file_name", "prompt"))


def test_wrong_caption_column_lists_the_columns(tmp_path):
    write_image(tmp_path / "a.png")
    jsonl(tmp_path, {"file_name": "a.png", "prompt": "x"})
    problem = only(tmp_path)
    assert "no column 'text'" in problem.found and "file_name, prompt" in problem.found
    assert "caption_column to one of prompt" in problem.remedy


def test_every_mistake_in_metadata_is_named_with_its_lines(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "set" / name)
    write_image(tmp_path / "outside.png")
    path = jsonl(
        tmp_path / "set",
        {"file_name": "a.png", "text": "fine"},
        '{"file_name": "b.png", ',
        {"text": "no name"},
        {"file_name": "a.png", "text": "again"},
        {"file_name": "../outside.png", "text": "x"},
        {"file_name": "/etc/x.png", "text": "x"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "deep/gone.png", "text": "x"},
        {"file_name": "notes.md", "text": "x"},
        {"file_name": "b.png", "text": None},
        "[1, 2]",
    )
    found = problems(tmp_path / "set")
    assert {problem.subject for problem in found} == {str(path)}
    assert sorted(problem.found for problem in found) == [
        "a file_name outside this folder: lines 5, 6",
        "a file_name that an earlier line has: line 4",
        "a file_name that does not exist: lines 7, 8",
        "a file_name that is no image: line 9",
        "no file_name: line 3",
        "no text in the caption column: line 10",
        "not a JSON object: lines 2, 11",
    ]
    assert all(problem.remedy for problem in found)


def test_long_lists_of_lines_are_cut(tmp_path):
    write_image(tmp_path / "a.png")
    jsonl(tmp_path, *({"file_name": f"{number}.png", "text": "x"} for number in range(1000)))
    assert "lines 1, 2, 3, 4, 5, 6 and 994 more" in only(tmp_path).found


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("metadata.jsonl", b"", "has no rows"),
        ("metadata.csv", b"file_name,text\n", "has no rows"),
        ("metadata.csv", b"name,text\na.png,x\n", "has no column 'file_name'"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "\xff"}', "cannot be read as UTF-8"),
    ],
)
def test_unusable_metadata(tmp_path, name, content, found):
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    assert found in only(tmp_path).found


# --- parquet -----------------------------------------------------------------------------------------


def test_parquet_of_several_shards(tmp_path):
    for number, count in enumerate((3, 4)):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002-a1b2.parquet", table(count))
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table(9))
    info = find(tmp_path)
    assert (info.format, info.num_examples, info.columns) == ("parquet", 7, ("image", "text"))
    assert [path.name[:11] for path in info.files] == ["train-00000", "train-00001"]
    info.files[1].unlink()
    assert "train-00001-of-00002" in only(tmp_path).found


def test_other_splits_are_no_training_data(tmp_path):
    parquet(tmp_path / "test-00000-of-00001.parquet", table(1))
    assert "other splits only" in only(tmp_path).found


def test_splits_and_shards_by_name():
    assert train_files(["a.parquet", "train.parquet", "val-1.parquet"]) == ("train.parquet",)
    assert train_files(["testament.parquet", "test.parquet"]) == ("testament.parquet",)
    assert train_files(["train_0.parquet", "train_1.parquet"]) == ("train_0.parquet", "train_1.parquet")
    assert missing_shards(["a-00001-of-00003.parquet", "b.parquet"]) == [
        "a-00000-of-00003",
        "a-00002-of-00003",
    ]


def test_wrong_columns(tmp_path):
    parquet(tmp_path / "a.parquet", table(2, label=[1, 2]))
    found = problems(tmp_path, image_column="pixels", caption_column="prompt")
    assert all("image, text, label" in problem.found for problem in found)
    assert sorted(problem.remedy.split()[1] for problem in found) == ["caption_column", "image_column"]
    found = problems(tmp_path, image_column="label", caption_column="label")
    assert all("holds int64" in problem.found for problem in found) and len(found) == 2
    assert find(tmp_path, captions=False).caption_column is None


def test_missing_captions_and_rows(tmp_path):
    parquet(tmp_path / "a.parquet", table(3, text=["x", None, None]))
    assert "2 of 3 rows have nothing in column 'text'" in only(tmp_path).found
    assert find(tmp_path, captions=False).num_examples == 3
    parquet(tmp_path / "a.parquet", table(3).slice(0, 0))
    assert "has no rows" in only(tmp_path).found


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda data: data[:-30], "damaged or truncated"),
        (lambda data: b"", "damaged or truncated"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ],
)
def test_damaged_parquet_is_named(tmp_path, damage, found):
    parquet(tmp_path / "train-00000-of-00002.parquet", table(2))
    path = parquet(tmp_path / "train-00001-of-00002.parquet", table(2))
    path.write_bytes(damage(path.read_bytes()))
    problem = only(tmp_path)
    assert problem.subject == str(path) and found in problem.found


def test_shards_of_different_sets_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet", table(2))
    parquet(tmp_path / "b.parquet", table(2, more=[1, 2]))
    assert "has other columns than a.parquet" in only(tmp_path).found


# --- saved by `datasets` -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved Dataset, and a saved DatasetDict of two splits."""
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_dict(table(6).to_pydict(), features=features)
    data.save_to_disk(folder / "one", num_shards=2)
    splits = {"train": data, "test": data.select(range(2))}
    datasets.DatasetDict(splits).save_to_disk(folder / "splits")
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(folder / "other")
    return folder


def test_saved_dataset(saved):
    info = find(saved, "one")
    assert (info.format, info.num_examples, info.columns) == ("saved", 6, ("image", "text"))
    assert (info.path, info.files) == (saved / "one", tuple(sorted((saved / "one").glob("*.arrow"))))
    assert verify_sample(info, 16) == []
    assert "no column 'prompt'" in only(saved, "one", caption_column="prompt").found


def test_saved_splits(saved):
    info = find(saved, "splits")
    assert (info.path, info.num_examples) == (saved / "splits" / "train", 6)
    assert find(info.path).num_examples == 6
    assert "no split named train; it has a, b" in only(saved, "other").found
    assert find(saved, "other/b").num_examples == 6


def test_damaged_saved_dataset(saved, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(saved / "one", broken)
    path = broken / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    assert only(broken).subject == str(path)
    path.unlink()
    assert only(broken).subject == str(path) and "does not exist" in only(broken).found
    (broken / "state.json").write_text("{")
    assert "state.json" in only(broken).subject


# --- decoding a sample -------------------------------------------------------------------------------


def test_spread_is_even_and_has_both_ends():
    assert spread(5, 16) == [0, 1, 2, 3, 4]
    assert spread(1000, 5) == [0, 250, 500, 749, 999] or spread(1000, 5)[2] in (499, 500)
    assert spread(10, 1) == [0] and spread(0, 4) == []
    for limit in (2, 7, 16):
        rows = spread(17, limit)
        assert len(rows) == limit and rows[0] == 0 and rows[-1] == 16


def test_corrupt_images_are_named(tmp_path):
    for number in range(40):
        write_image(tmp_path / f"{number:02d}.png")
    write_image(tmp_path / "39.png", PNG[:-30])
    write_image(tmp_path / "00.png", b"")
    found = verify_sample(find(tmp_path, captions=False), 16)
    assert [Path(problem.subject).name for problem in found] == ["00.png", "39.png"]
    assert {problem.code for problem in found} == {66} and "empty" in found[0].found


@pytest.mark.parametrize("kind", ["struct", "bytes", "path"])
def test_corrupt_rows_of_parquet_are_named(tmp_path, kind):
    write_image(tmp_path / "images" / "good.png")
    write_image(tmp_path / "images" / "bad.png", b"no image")
    good, bad = {
        "struct": ({"bytes": PNG, "path": None}, {"bytes": b"", "path": None}),
        "bytes": (PNG, PNG[:40]),
        "path": ("images/good.png", "images/bad.png"),
    }[kind]
    values = [good] * 300
    values[150] = values[299] = bad
    for number in range(2):
        content = pa.table({"image": values, "text": ["x"] * 300})
        parquet(tmp_path / f"train-0000{number}-of-00002.parquet", content, row_group_size=64)
    found = verify_sample(find(tmp_path), 600)
    second = tmp_path / "train-00001-of-00002.parquet"
    assert [problem.subject for problem in found if problem.subject.startswith(str(second))] == [
        f"{second} row 150",
        f"{second} row 299",
    ]
    assert len(found) == 4
    few = verify_sample(find(tmp_path), 2)
    assert [problem.subject for problem in few] == [f"{second} row 299"]


def test_a_huge_row_group_is_sampled_from_its_front(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", table(64), row_group_size=64)
    size = pq.read_metadata(path).row_group(0).total_byte_size
    monkeypatch.setattr("sdjob.dataset.formats.parquet._GROUP_BYTES", size // 4)
    assert verify_sample(find(tmp_path), 8) == []
    rows = table(64).to_pydict()["image"]
    rows[40] = {"bytes": b"bad", "path": None}
    parquet(path, table(64, image=rows), row_group_size=64)
    assert verify_sample(find(tmp_path), 64) == []
    rows[3] = rows[40]
    parquet(path, table(64, image=rows), row_group_size=64)
    assert [problem.subject for problem in verify_sample(find(tmp_path), 64)] == [f"{path} row 3"]


def test_every_row_of_a_table_is_decoded_while_there_is_time(tmp_path):
    rows = table(70).to_pydict()["image"]
    for row in (3, 40, 66):
        rows[row] = {"bytes": b"bad", "path": None}
    path = parquet(tmp_path / "a.parquet", table(70, image=rows))
    bad, looked = verify_all(find(tmp_path), time.monotonic() + 60)
    assert [problem.subject for problem in bad] == [f"{path} row {row}" for row in (3, 40, 66)]
    assert looked == 70
    assert verify_all(find(tmp_path), time.monotonic()) == ([], 0)


def test_damage_inside_a_parquet_file_is_named(tmp_path):
    rows = [{"bytes": os.urandom(2000), "path": None} for _ in range(50)]
    path = parquet(tmp_path / "a.parquet", table(50, image=rows), compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)
    (problem,) = verify_sample(find(tmp_path), 4)
    assert problem.subject == str(path) and problem.found


def test_a_column_name_that_is_no_text_is_damage(tmp_path):
    path = parquet(tmp_path / "a.parquet", table(2))
    path.write_bytes(path.read_bytes().replace(b"image", b"\x80mage"))
    assert "is damaged" in only(tmp_path).found


# --- odd names ---------------------------------------------------------------------------------------


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_image(folder / os.fsdecode(b"\xff.png"), b"")
    write_image(folder / "good.png")
    (problem,) = verify_sample(find(tmp_path, captions=False), 4)
    assert r"caf\xe9/\xff.png" in str(problem)
    for found in (problem, only(tmp_path), only(folder, "no such")):
        str(found).encode("utf-8")


def test_impossible_names_are_problems(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("x" * 300, "nul\0l", "a.png/b"):
        assert only(tmp_path, name, captions=False).found
    assert "is a file" in only(tmp_path, "a.png", captions=False).found


def test_links_are_followed_and_loops_are_not_fatal(tmp_path):
    write_image(tmp_path / "elsewhere" / "a.png")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (folder / "loop").symlink_to(folder / "loop")
    assert find(folder, captions=False).num_examples == 1
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    assert find(tmp_path, "linked", captions=False).num_examples == 1


# --- reading rights and speed ------------------------------------------------------------------------


def test_unreadable_places_are_problems(tmp_path):
    write_image(tmp_path / "secret" / "a.png")
    secret = tmp_path / "secret"
    secret.chmod(0o000)
    try:
        found = problems_as_nobody(lambda: find(secret, captions=False), secret)
        assert list(found) == [str(secret)] and "permission denied" in found[str(secret)]
        below = problems_as_nobody(lambda: find(tmp_path, captions=False), secret)
        assert "permission denied" in below[str(secret)] and str(tmp_path) in below
    finally:
        secret.chmod(0o755)
    jsonl(secret, {"file_name": "a.png", "text": "x"}).chmod(0o000)
    (secret / "a.png").chmod(0o000)
    assert "permission denied" in str(problems_as_nobody(lambda: find(secret), secret))

    def sampled():
        raise JobError(verify_sample(find(secret, captions=False), 4))

    assert "permission denied" in problems_as_nobody(sampled, secret)[str(secret / "a.png")]


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


def test_nothing_heavy_is_imported_to_recognise_a_folder(tmp_path):
    import subprocess
    import sys

    import sdjob

    write_image(tmp_path / "a.png")
    code = f"""
import sys
sys.path.insert(0, {str(Path(sdjob.__file__).parents[1])!r})
from pathlib import Path
from sdjob.dataset.detect import find_dataset
import sdjob.model.pipeline
find_dataset(Path({str(tmp_path)!r}), None, captions=False, image_column="image", caption_column="text")
print([name for name in ("PIL", "pyarrow", "numpy", "torch", "diffusers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
