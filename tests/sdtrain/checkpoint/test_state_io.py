"""Checkpoints in both forms. The source of sharded ones is not trusted, so reading one runs no code."""

import io
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from sdjob.output.checkpoint_files import MODEL, OPTIMIZER
from sdjob.problems import JobError
from sdtrain.checkpoint import state_io
from sdtrain.checkpoint.shard_index import IndexUnpickler
from sdtrain.strategies.shards import whole


class Wicked:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_description_of_shards_that_names_anything_else_is_refused(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir"):
        IndexUnpickler(io.BytesIO(pickle.dumps(Wicked(path)))).load()
    assert not path.exists()
    pickle.loads(pickle.dumps(Wicked(path)))
    assert path.exists()  # so it would have been


WEIGHT = torch.zeros(2)
RANGES = {"w": whole(WEIGHT.shape)}
TABLES = {"master": {"w": WEIGHT}, "exp_avg": {"w": WEIGHT}, "exp_avg_sq": {"w": WEIGHT}}
STATE = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}


@pytest.mark.parametrize(
    ("name", "content"),
    [(MODEL, b""), (OPTIMIZER, b""), (OPTIMIZER, pickle.dumps(Wicked("made"))), (MODEL, None)],
)
def test_files_that_no_run_saves_are_named_and_not_taken_for_a_bug(tmp_path, name, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state_io.save_whole(tmp_path, {"w": torch.ones(2)}, {}, {"state": {0: STATE}}, {})
    assert state_io.load(tmp_path, TABLES, RANGES).updates == 3
    (tmp_path / name).write_bytes(content) if content is not None else (tmp_path / name).unlink()
    with pytest.raises(JobError) as caught:
        state_io.load(tmp_path, TABLES, RANGES)
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == (64, "resume") and str(tmp_path) in problem.found
    assert not (tmp_path / "made").exists()


def test_a_failure_of_the_storage_stays_one(tmp_path):
    state_io.save_whole(tmp_path, {"w": torch.ones(2)}, {}, {"state": {0: STATE}}, {})
    (tmp_path / OPTIMIZER).unlink()
    with pytest.raises(FileNotFoundError):
        state_io.load(tmp_path, TABLES, RANGES)


def test_weights_are_a_file_of_safetensors_whatever_their_layout(tmp_path):
    image = torch.randn(2, 3, 4, 5)
    master = {
        "a bias": torch.randn(7),
        "convolution": image.to(memory_format=torch.channels_last),
        "slice": torch.randn(9, 9)[1:, ::2],
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    state_io.save_whole(tmp_path, master, {"number": torch.tensor(3.5)}, {}, {})
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == master.keys()
    assert all(torch.equal(found[name], weight) for name, weight in master.items())
    assert load_file(tmp_path / "ema.safetensors") == {"number": torch.tensor(3.5)}
