"""Parquet files: their training split, columns and images. Tests of parquet and tables."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdjob.dataset.formats.parquet import missing_shards, train_files
from sdjob.dataset.verify import verify_sample
from tests.support.datasets import captions, find, only, parquet, png, problems, table


def test_parquet_of_several_shards(tmp_path):
    for number, count in enumerate((3, 4)):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002-a1b2.parquet", table(count))
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table(9))
    info = find(tmp_path)
    assert (info.format.name, info.num_examples, info.columns) == ("parquet", 7, ("image", "text"))
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


def test_captions_come_file_by_file(tmp_path):
    for file in range(2):
        texts = [f"caption {file}-{row}" for row in range(5)]
        pq.write_table(
            pa.table({"image": [png()] * 5, "text": texts}),
            tmp_path / f"train-0000{file}-of-00002.parquet",
        )
    assert captions(tmp_path, 5 + 1) == [*(f"caption 0-{row}" for row in range(5)), "caption 1-0"]
