"""Every format gives the same images and captions by index, and nothing is written to the dataset."""

import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdjob.dataset.detect import find_dataset
from sdjob.dataset.images import decode
from sdjob.problems import JobError
from sdtrain.data.sources import open_source
from sdtrain.data.training_images import verify


def png(number: int, size=(12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def info_of(folder, captions=True):
    return find_dataset(Path(folder), None, captions=captions, image_column="image", caption_column="text")


def metadata_folder(folder: Path, count: int) -> Path:
    rows = []
    for number in range(count):
        name = f"sub/{number:02d} ü.png"
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
        rows.append({"file_name": name, "text": f"caption {number}"})
    lines = [json.dumps(row) for row in reversed(rows)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def columns(numbers):
    return {
        "image": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers],
        "text": [f"caption {number}" for number in numbers],
    }


def parquet_folder(folder: Path, count: int, shards: int = 2) -> Path:
    """Written by pyarrow alone, with a column that is of no use."""
    (folder / "data").mkdir(parents=True)
    for shard in range(shards):
        numbers = range(shard * count // shards, (shard + 1) * count // shards)
        content = pa.table({**columns(numbers), "odd": pa.nulls(len(numbers))})
        pq.write_table(content, folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet")
    return folder


def dataset_of(count):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns(range(count)), features=features)


def text_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:02d}.png").write_bytes(png(number))
        (folder / f"{number:02d}.txt").write_text(f"caption {number}\n")
    return folder


def hub_folder(folder: Path, count: int) -> Path:
    (folder / "data").mkdir(parents=True)
    dataset_of(count).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def saved_folder(folder: Path, count: int) -> Path:
    dataset_of(count).save_to_disk(folder, num_shards=2)
    return folder


KINDS = {
    "metadata": metadata_folder,
    "text files": text_folder,
    "parquet by pyarrow": parquet_folder,
    "parquet by datasets": hub_folder,
    "saved": saved_folder,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_examples(tmp_path, kind):
    folder = KINDS[kind](tmp_path / "my data", 6)
    before = sorted(folder.rglob("*"))
    source = open_source(info_of(folder), tmp_path / "cache")
    for each in (source, pickle.loads(pickle.dumps(source))):
        assert len(each) == 6
        assert [decode(each[index].encoded()).getpixel((0, 0)) for index in range(6)] == [
            (n, 0, 0) for n in range(6)
        ]
        assert [each[index].caption() for index in range(6)] == [f"caption {index}" for index in range(6)]
    assert source[5].name().startswith(str(folder)) and len({source[index].name() for index in range(6)}) == 6
    assert verify(source, "all", 0, 1).problems == {}
    assert sorted(folder.rglob("*")) == before, "nothing is written to the dataset"


@pytest.mark.parametrize("kind", ["metadata", "parquet by pyarrow"])
def test_without_captions_there_are_none(tmp_path, kind):
    source = open_source(info_of(KINDS[kind](tmp_path / "a", 2), captions=False), tmp_path / "cache")
    assert [source[index].caption() for index in range(2)] == [None, None]


def test_rows_are_named_by_file_and_place(tmp_path):
    folder = parquet_folder(tmp_path / "a", 10)
    source = open_source(info_of(folder), tmp_path / "cache")
    assert source[4].name() == f"{folder}/data/train-00000-of-00002.parquet row 4"
    assert source[5].name() == f"{folder}/data/train-00001-of-00002.parquet row 0"


@pytest.mark.parametrize("kind", ["bytes", "paths"])
def test_other_image_columns(tmp_path, kind):
    (tmp_path / "7.png").write_bytes(png(7))
    value = png(7) if kind == "bytes" else "7.png"
    pq.write_table(pa.table({"image": [value], "text": ["x"]}), tmp_path / "a.parquet")
    source = open_source(info_of(tmp_path), tmp_path / "cache")
    assert decode(source[0].encoded()).getpixel((0, 0)) == (7, 0, 0)


def test_a_changed_parquet_file_is_read_anew(tmp_path):
    for number in (1, 2):
        pq.write_table(pa.table(columns([number])), tmp_path / "a.parquet")
        assert open_source(info_of(tmp_path), tmp_path / "cache")[0].caption() == f"caption {number}"


def test_several_processes_may_convert_at_once(tmp_path):
    info = info_of(parquet_folder(tmp_path / "a", 8))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_source(info, tmp_path / "cache"), range(4)))
    assert [source[7].caption() for source in opened] == ["caption 7"] * 4
    (converted,) = (tmp_path / "cache").rglob("*.arrow")
    with pa.ipc.open_stream(converted.read_bytes()) as reader:
        assert reader.schema.names == ["image", "text"], "other columns take no space"


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError) as caught:
        open_source(info_of(parquet_folder(tmp_path / "a", 2)), tmp_path / "file" / "cache")
    assert caught.value.code == 73 and "cache_dir" in caught.value.problems[0].remedy


def test_a_row_without_caption_is_counted_at_once_and_named_where_it_came_later(tmp_path):
    path, content = tmp_path / "a.parquet", pa.table(columns(range(2)))
    pq.write_table(content, path)
    before = info_of(tmp_path)
    pq.write_table(content.set_column(1, "text", pa.array(["x", None])), path, write_statistics=False)
    with pytest.raises(JobError, match="1 of 2 rows have nothing in column 'text'"):
        info_of(tmp_path)
    source = open_source(before, tmp_path / "cache")
    with pytest.raises(JobError, match="row 1: the row has no caption"):
        source[1].caption()
