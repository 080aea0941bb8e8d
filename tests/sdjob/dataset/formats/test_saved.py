"""What `save_to_disk` wrote: one split is trained on, and damage is named."""

import shutil
import struct

import pyarrow as pa
import pytest

from sdjob.dataset.verify import verify_sample
from tests.support.datasets import captions, find, only, png, table


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
    assert (info.format.name, info.num_examples, info.columns) == ("saved", 6, ("image", "text"))
    assert (info.path, info.files) == (saved / "one", tuple(sorted((saved / "one").glob("*.arrow"))))
    assert verify_sample(info, 16).bad == []
    assert "no column 'prompt'" in only(saved, "one", caption_column="prompt").found


def test_saved_splits(saved):
    info = find(saved, "splits")
    assert (info.path, info.num_examples) == (saved / "splits" / "train", 6)
    assert find(info.path).num_examples == 6
    assert "no split named train; it has a, b" in only(saved, "other").found
    assert find(saved, "other/b").num_examples == 6


def test_damaged_saved_dataset(saved, tmp_path):

    broken = tmp_path / "broken"
    shutil.copytree(saved / "one", broken)
    path = broken / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    assert only(broken).subject == str(path)
    path.unlink()
    assert only(broken).subject == str(path) and "does not exist" in only(broken).found
    (broken / "state.json").write_text("{")
    assert "state.json" in only(broken).subject


def test_captions_are_read_as_they_are_asked_for(tmp_path):
    import datasets

    rows = {"image": [png()] * 5, "text": [f"caption {row}" for row in range(5)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    assert captions(tmp_path / "saved", 2) == ["caption 0", "caption 1"]


def with_offsets(kind, offsets, content):
    """An array of three values that are where its offsets say."""
    buffers = [None, pa.py_buffer(struct.pack("<4i", *offsets)), pa.py_buffer(content)]
    return pa.Array.from_buffers(kind, 3, buffers)


@pytest.mark.parametrize("column", ["image", "text"])
@pytest.mark.parametrize("offsets", [(0, 4, 2**31 - 2, 20), (0, 4, -(2**30), 20)])
def test_offsets_that_lead_out_of_the_file(tmp_path, column, offsets):
    values = {"image": [png()] * 3, "text": ["a"] * 3}
    values[column] = with_offsets(pa.binary() if column == "image" else pa.string(), offsets, b"hello" * 4)
    table = pa.table(values)
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (tmp_path / "dataset_info.json").write_text("{}")
    problem = only(tmp_path)
    assert problem.subject == str(tmp_path / "data.arrow")
    assert problem.found.startswith("is damaged or truncated (Offset invariant failure")
