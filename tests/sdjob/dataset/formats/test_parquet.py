"""Parquet files: their training split, columns and images. Tests of parquet, tables and column_types."""

import base64
import os
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdjob.dataset.formats.parquet import _convert, missing_shards
from sdjob.dataset.formats.tables import row_name
from sdjob.dataset.images import decode, source_of
from sdjob.dataset.text_files import LONGEST_CAPTION
from sdjob.dataset.verify import examine, first_captions, spread, verify_sample
from sdjob.problems import JobError, Problem
from sdtrain.data.sources import open_source
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
    problem = only(tmp_path)
    assert "other splits only" in problem.found and "dataset_split=test" in problem.remedy


def test_missing_shards_by_name():
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


def sampled(folder, limit: int) -> list[Problem]:
    """The problems of a sample, read in this process."""
    info = find(folder)
    values = info.format.sample(info, spread(info.num_examples, limit))
    return examine(list(values), partial(row_name, info), lambda row: source_of(values[row], folder)).bad


def test_a_huge_row_group_is_sampled_from_its_front(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", table(64), row_group_size=64)
    size = pq.read_metadata(path).row_group(0).total_byte_size
    monkeypatch.setattr("sdjob.dataset.formats.parquet._GROUP_BYTES", size // 4)
    assert sampled(tmp_path, 8) == []
    rows = table(64).to_pydict()["image"]
    rows[40] = {"bytes": b"bad", "path": None}
    parquet(path, table(64, image=rows), row_group_size=64)
    assert sampled(tmp_path, 64) == []
    rows[3] = rows[40]
    parquet(path, table(64, image=rows), row_group_size=64)
    assert [problem.subject for problem in sampled(tmp_path, 64)] == [f"{path} row 3"]


def test_damage_inside_a_parquet_file_is_named(tmp_path):
    rows = [{"bytes": os.urandom(2000), "path": None} for _ in range(50)]
    path = parquet(tmp_path / "a.parquet", table(50, image=rows), compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)
    with pytest.raises(JobError) as caught:
        verify_sample(find(tmp_path), 4)
    (problem,) = caught.value.problems
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


def shard(number: int, order=("image", "text"), text=None, image=None, **options):
    """A table of one row, whose caption is its number."""
    columns = {
        "image": image if image is not None else [{"bytes": png((number, 0, 0)), "path": None}],
        "text": pa.array([f"caption {number}"], text),
    }
    return pa.table({name: columns[name] for name in order})


def test_shards_may_differ_in_the_order_and_types_of_their_columns(tmp_path):
    plain = pa.string()
    types = (plain, pa.large_string(), pa.dictionary(pa.int32(), plain), pa.string_view())
    for number, text in enumerate(types):
        parquet(
            tmp_path / f"{number}.parquet",
            shard(number, ("text", "image") if number % 2 else ("image", "text"), text),
        )
    paths_first = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
    image = pa.array([{"path": None, "bytes": png((4, 0, 0))}], paths_first)
    parquet(tmp_path / "4.parquet", shard(4, image=image))
    assert captions(tmp_path) == [f"caption {number}" for number in range(5)]
    source = open_source(find(tmp_path), tmp_path / "cache")
    assert [source[index].caption() for index in range(5)] == [f"caption {number}" for number in range(5)]
    colours = [decode(source[index].encoded()).getpixel((0, 0)) for index in range(5)]
    assert colours == [(number, 0, 0) for number in range(5)]


@pytest.mark.parametrize("first", range(1, 4))
def test_any_type_of_text_may_come_first(tmp_path, first):
    types = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view())
    for number, text in enumerate((types[first], types[0])):
        parquet(tmp_path / f"{number}.parquet", shard(number, text=text))
    source = open_source(find(tmp_path), tmp_path / "cache")
    assert [source[index].caption() for index in range(2)] == ["caption 0", "caption 1"]


def test_a_null_in_a_dictionary_is_named(tmp_path):
    text = pa.array(["x", "x", None]).dictionary_encode()
    path = parquet(tmp_path / "a.parquet", table(3, text=text))
    assert f"1 of 3 rows have nothing in column 'text': row 2 of {path.name}" in only(tmp_path).found


def test_images_of_one_kind_in_all_shards(tmp_path):
    parquet(tmp_path / "a.parquet", shard(0))
    path = parquet(tmp_path / "b.parquet", shard(1, image=[png()]))
    problem = only(tmp_path)
    assert problem.subject == str(path) and "holds binary, and struct" in problem.found


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (["https://example.org/a.png"], "URLs"),
        (["s3://bucket/a.png"], "URLs"),
        ([base64.b64encode(png()).decode()], "base64 text"),
        ([base64.b64encode(png())], "base64 text"),
        (["data:image/png;base64," + base64.b64encode(png()).decode()], "base64 text"),
    ],
)
def test_columns_that_stand_for_images_are_named(tmp_path, values, what):
    path = parquet(tmp_path / "a.parquet", shard(0, image=values))
    problem = only(tmp_path)
    assert problem.found == f"column 'image' holds {what}" and what in problem.remedy
    content = pa.table({"source": values, "text": ["x"]})
    parquet(path, content)
    assert f"its columns are source ({what}), text" in only(tmp_path).found


def test_several_captions_of_an_image_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet", table(2, text=[["one", "two"], ["three"]]))
    problem = only(tmp_path)
    assert "holds list<" in problem.found and "row for each caption" in problem.remedy
    assert find(tmp_path, captions=False).num_examples == 2


def test_columns_of_the_same_name(tmp_path):
    content = pa.Table.from_arrays(
        [pa.array([png()]), pa.array(["x"]), pa.array(["y"])], ["image", "text", "text"]
    )
    parquet(tmp_path / "a.parquet", content)
    assert "has 2 column 'text'" in only(tmp_path).found


def test_a_replaced_file_of_the_same_name_size_and_time_is_converted_again(tmp_path):
    """Image layers, archives and object mounts keep the times of what was replaced."""
    path, cache = tmp_path / "a.parquet", tmp_path / "cache"
    seen = []
    for caption in ("first", "other"):
        parquet(path, table(2, text=[caption, "x"]), compression="none")
        os.utime(path, (1_000_000, 1_000_000))
        seen.append((path.stat().st_size, open_source(find(tmp_path), cache)[0].caption()))
    assert seen == [(seen[0][0], "first"), (seen[0][0], "other")]
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / "b.parquet")
    before = sorted(cache.iterdir())
    assert open_source(find(moved), cache)[0].caption() == "other"
    assert sorted(cache.iterdir()) == before, "the same content is not converted again"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-700], lambda data: b"", lambda data: data[: len(data) // 2]]
)
def test_a_damaged_conversion_is_made_again(tmp_path, damage):
    parquet(tmp_path / "a.parquet", table(100))
    open_source(find(tmp_path), tmp_path / "cache")
    (converted,) = (tmp_path / "cache").iterdir()
    whole = converted.read_bytes()
    converted.write_bytes(damage(whole))
    assert open_source(find(tmp_path), tmp_path / "cache")[99].caption() == "caption 99"
    assert converted.read_bytes() == whole


def test_a_folder_that_cannot_hold_converted_files_is_73(tmp_path):
    info = find(parquet(tmp_path / "data" / "a.parquet", table(2)).parent)
    (tmp_path / "cache").touch()
    with pytest.raises(JobError) as caught:
        info.format.open(info, tmp_path / "cache", lambda: None)
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == (73, str(tmp_path / "cache"))
    assert problem.remedy == "Set cache_dir to a folder that can be written."


def unfolding(path, rows: int, characters: int, **options) -> None:
    """A small file whose captions are large."""
    text = pa.array(["a" * characters])
    texts = pa.chunked_array([text] * rows)
    image = [{"bytes": png(), "path": None}] * rows
    parquet(path, pa.table({"image": image, "text": texts}), compression="zstd", **options)
    assert path.stat().st_size < 100_000


def test_long_captions_are_cut(tmp_path):
    unfolding(tmp_path / "a.parquet", 30, 1 << 20)
    info = find(tmp_path)
    assert first_captions(info, 20) == ["a" * (LONGEST_CAPTION + 1)] * 20
    rows = info.format.open(info, tmp_path / "cache", lambda: None)
    assert [rows.caption(row) for row in range(30)] == ["a" * LONGEST_CAPTION] * 30


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_file_that_unfolds_beyond_memory_is_refused(tmp_path, use_dictionary):
    path = tmp_path / "a.parquet"
    unfolding(path, 2, 300 << 20, use_dictionary=use_dictionary)
    info = find(tmp_path)
    for read in (
        lambda: first_captions(info, 20),
        lambda: info.format.open(info, tmp_path / "cache", lambda: None),
    ):
        with pytest.raises(JobError) as caught:
            read()
        (problem,) = caught.value.problems
        assert problem.code == 66 and problem.subject == str(path)
        assert problem.found == "cannot be read: its reader needs more than 512 MiB of memory"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []


def test_rows_without_end_are_not_converted(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    unfolding(path, 300, 10_000)
    monkeypatch.setattr("sdjob.dataset.formats.parquet.MEMORY", 100_000)
    info = find(tmp_path)
    with pytest.raises(JobError, match="unfolds to more than 100 times its size"):
        _convert(info, tmp_path / "converted")


def test_a_path_that_is_not_utf8_is_refused(tmp_path):
    """pyarrow takes text as a path; the images of a folder may have any names."""
    folder = tmp_path / os.fsdecode(b"\xd5\xd5")
    folder.mkdir()
    parquet(tmp_path / "a.parquet", table(2)).rename(folder / "a.parquet")
    problem = only(tmp_path)
    assert "a path that is not UTF-8" in problem.found
    assert problem.subject == rf"{tmp_path}/\xd5\xd5/a.parquet"
