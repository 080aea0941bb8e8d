"""Fixtures for all tests: nothing leaks from one into the next, and small models and data are at hand."""

import gc
import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

# As the worker sets them for itself; set beforehand, so that they are no leak of the first test that trains.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also what makes forking ranks safe: no thread pool

# Set by libraries when they are imported, whoever does it first.
_SET_BY_IMPORTS = ("PYTEST_", "TORCHINDUCTOR_", "TORCH_", "KMP_", "TF_", "TRITON_", "CUDA_", "GRPC_")


@pytest.fixture(autouse=True)
def no_leaks():
    """A test that leaves an environment variable, a process group or a child process behind fails."""
    before = _environment()
    yield
    after = _environment()
    assert after == before, f"leaked: {dict(after.items() ^ before.items())}"
    if multiprocessing.active_children():
        gc.collect()  # the loader of a run that failed goes with the traceback of its error
    assert not multiprocessing.active_children()
    if distributed := sys.modules.get("torch.distributed"):
        assert not distributed.is_initialized(), "leaked a process group"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_SET_BY_IMPORTS)}


def _pipeline(tmp_path_factory: pytest.TempPathFactory, prediction_type: str) -> Path:
    from sddemo.tiny_pipeline import make_tiny_pipeline

    folder = make_tiny_pipeline(tmp_path_factory.mktemp(prediction_type) / "model", prediction_type)
    config = folder / "vae/config.json"
    factor = {"scaling_factor": 0.7}  # as real ones have: a trainer that forgets it is found out
    config.write_text(json.dumps(json.loads(config.read_text()) | factor))
    return folder


@pytest.fixture(scope="session")
def eps_model(tmp_path_factory):
    """A tiny random pipeline that predicts the noise."""
    return _pipeline(tmp_path_factory, "epsilon")


@pytest.fixture(scope="session")
def v_model(tmp_path_factory):
    """A tiny random pipeline that predicts the velocity."""
    return _pipeline(tmp_path_factory, "v_prediction")


@pytest.fixture(scope="session")
def xl_model(tmp_path_factory):
    """A tiny random pipeline of Stable Diffusion XL."""
    from sddemo.tiny_pipeline import make_tiny_xl_pipeline

    return make_tiny_xl_pipeline(tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    """Six drawings with captions."""
    from sddemo.scenes import caption, render, scenes

    folder = tmp_path_factory.mktemp("captioned")
    rows = []
    for number, scene in enumerate(scenes(6, seed=0)):
        render(scene).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption(scene)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def instance(tmp_path_factory):
    """Three drawings of one kind."""
    from sddemo.scenes import Scene, render

    folder = tmp_path_factory.mktemp("instance")
    for number, x in enumerate((28.0, 32.0, 36.0)):
        render(Scene("cross", "orange", "grey", x=x)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def of_class(tmp_path_factory):
    """Four drawings of the class."""
    from sddemo.scenes import render, scenes

    folder = tmp_path_factory.mktemp("class")
    for number, scene in enumerate(scenes(4, seed=1)):
        render(scene).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def inputs(eps_model, captioned, instance):
    """Settings that name the model and the data of either recipe."""
    return {
        "pretrained_model_name_or_path": eps_model,
        "train_data_dir": captioned,
        "instance_data_dir": instance,
    }


@pytest.fixture
def train(inputs, tmp_path):
    """Runs the worker in this process into tmp_path/<output>; returns that folder."""
    from tests.support import worker

    def run(output="output", *, code=0, ranks=1, **settings) -> Path:
        folder = tmp_path / output
        given = {**inputs, "output_dir": folder, **settings}
        codes = [worker.in_process(**given)] if ranks == 1 else worker.in_ranks(ranks, **given)
        assert codes == [code] * ranks
        return folder

    return run


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, action): has the action done in the n-th training step of the runs to come; 0: no more."""
    from sdtrain import loop

    original = loop.Progress

    def arrange(step: int, action=lambda: None) -> None:
        class Watched(original):
            def show(self, done: int, note: str = "") -> None:
                super().show(done, note)
                if done == step:
                    action()

        monkeypatch.setattr(loop, "Progress", Watched)

    return arrange
