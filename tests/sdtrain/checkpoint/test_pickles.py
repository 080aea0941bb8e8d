"""Tests of pickles and shard_index: what would take any memory or time, and what a run writes."""

import io
import pickle
import zipfile

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from sdjob.model import torch_zip
from sdjob.problems import JobError
from sdtrain.checkpoint import pickles, shard_index, state_io
from sdtrain.strategies.shards import whole

FAR_NOTE = b"\x80\x02}r\xff\xff\xff\x7f."  # pickle makes room for all notes below, 32 GiB
ENDLESS_KEY = b"\x80\x02}" + b")q\x00" + b"h\x00\x86q\x00" * 60 + b"Ns."  # its hash takes 2^60 steps


def archive(path, *entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in (*entries, ("a/version", b"3"), ("a/byteorder", b"little")):
            file.writestr(name, content)
    return path


def refusal(read, folder) -> str:
    with pytest.raises(JobError) as caught:
        read(folder)
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == (64, "resume") and str(folder) in problem.found
    return problem.found


@pytest.mark.parametrize("content", [FAR_NOTE, ENDLESS_KEY])
def test_an_optimizer_that_takes_all_memory_or_time_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.setattr(torch_zip, "_PATIENCE", 1.0)
    archive(tmp_path / "optimizer.pt", ("a/data.pkl", content))
    assert "its reader" in refusal(state_io.read_optimizer, tmp_path)


def test_an_optimizer_that_unfolds_is_refused(tmp_path):
    entries = ("a/data.pkl", b"\x80\x02}."), ("a/data/0", bytes(100 << 20))
    archive(tmp_path / "optimizer.pt", *entries, compression=zipfile.ZIP_DEFLATED)
    assert "more bytes than the file" in refusal(state_io.read_optimizer, tmp_path)


@pytest.mark.parametrize("name", ["b/data.pkl", "a/DATA.pkl"])
def test_an_optimizer_of_two_pickles_is_refused_since_torch_may_read_either(tmp_path, name):
    archive(tmp_path / "optimizer.pt", ("a/data.pkl", b"\x80\x02}."), (name, ENDLESS_KEY))
    assert "2 entries data.pkl" in refusal(state_io.read_optimizer, tmp_path)


def test_an_optimizer_of_a_tensor_without_end_is_refused(tmp_path):
    endless = torch.zeros(1, dtype=torch.float64).expand(1 << 38)
    state_io.save_whole(tmp_path, {"w": torch.ones(2)}, {}, {"state": {0: {"exp_avg": endless}}}, {})
    assert "in a storage of fewer" in refusal(state_io.read_optimizer, tmp_path)


@pytest.mark.parametrize("scaler", [{"scale": "x"}, [1], {"scale": None}])
def test_a_scaler_of_other_values_is_refused(tmp_path, scaler):
    state_io.save_whole(tmp_path, {"w": torch.ones(2)}, {}, {"state": {}}, scaler)
    refusal(state_io.read_optimizer, tmp_path)


@pytest.mark.parametrize("step", [-1.0, 1e30])
def test_a_number_of_updates_that_no_run_has_is_refused(tmp_path, step):
    """Adam would divide by zero."""
    state = {"step": torch.tensor(step), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    state_io.save_whole(tmp_path, {"w": torch.ones(2)}, {}, {"state": {0: state}}, {})
    tables = {name: {"w": torch.zeros(2)} for name in ("master", "exp_avg", "exp_avg_sq")}
    refusal(lambda folder: state_io.load(folder, tables, {"w": whole(torch.Size([2]))}), tmp_path)


@pytest.fixture
def shards(tmp_path):
    """A checkpoint in the sharded form, of one process."""
    ranges = {"w": whole(torch.Size([3]))}
    tables = state_io._flat({"master": {"w": torch.arange(3.0)}}, ranges)
    save(
        tables,
        storage_writer=FileSystemWriter(tmp_path / "shards"),
        planner=state_io._SavePlanner(),
        no_dist=True,
    )
    return tmp_path


def read(folder):
    weight = torch.zeros(3)
    state_io.read_weights(folder, {"w": weight}, ema=False)
    return weight.tolist()


def test_shards_of_a_run_are_read(shards):
    assert read(shards) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("content", [FAR_NOTE, ENDLESS_KEY])
def test_a_description_of_shards_that_takes_all_memory_or_time_is_refused(shards, monkeypatch, content):
    monkeypatch.setattr(shard_index, "_PATIENCE", 0.7)
    (shards / "shards/.metadata").write_bytes(content)
    assert "its reader" in refusal(read, shards)


SIZE = torch.Size([3])
DEEP = ()
for _ in range(60):
    DEEP = (DEEP, DEEP)


@pytest.mark.parametrize("change", ["path", "pipe", "size", "offset"])
def test_a_description_of_other_values_is_refused(shards, monkeypatch, change):
    path = shards / "shards/.metadata"
    tensor = TensorStorageMetadata(
        TensorProperties(dtype=torch.float32),
        DEEP if change == "size" else SIZE,
        [ChunkStorageMetadata(torch.Size([0]), SIZE)],
    )
    name = {"path": "../../x.distcp", "pipe": "pipe.distcp"}.get(change, "__0_0.distcp")
    info = _StorageInfo(name, "x" if change == "offset" else 0, 1)
    metadata = Metadata({"master/w": tensor}, storage_data={MetadataIndex("master/w", torch.Size([0])): info})
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="not a"):
        shard_index.read_here(path)


def shard(*entries, **options) -> tuple[io.BytesIO, int, int]:
    """An archive in the middle of a file."""
    content = archive(io.BytesIO(), *entries, **options).getvalue()
    return io.BytesIO(b"before" + content + b"after"), 6, len(content)


def test_a_shard_is_what_torch_saves():
    saved = io.BytesIO()
    torch.save(torch.ones(7), saved)
    pickles.check_shard(io.BytesIO(b"123" + saved.getvalue()), 3, len(saved.getvalue()))
    pickles.check_shard(*shard(("a/data.pkl", b"\x80\x02N.")))


@pytest.mark.parametrize(
    "made",
    [
        shard(("a/data.pkl", ENDLESS_KEY)),
        shard(("a/data.pkl", bytes(1 << 15))),
        shard(("a/data.pkl", b"\x80\x02N."), ("a/data/0", bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED),
        shard(("a/data.pkl", b"\x80\x02N."), ("b/data.pkl", b"\x80\x02N.")),
        shard(("a/data.pkl", b"\xff")),
        (io.BytesIO(b"x" * 99), 5, 50),
        (io.BytesIO(), 5, 50),
    ],
)
def test_a_shard_of_anything_else_is_refused(made):
    with pytest.raises(ValueError):
        pickles.check_shard(*made)
