"""Fixtures for all tests: leak checks, and small models and datasets."""

import gc
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

# The worker sets these itself; set beforehand, so that they do not count as a leak of the first test that trains.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also what makes forking ranks safe: no thread pool

# Set by libraries when they are first imported.
_SET_BY_IMPORTS = (
    "PYTEST_",
    "TORCHINDUCTOR_",
    "_TORCHINDUCTOR_",
    "TORCH_",
    "KMP_",
    "TF_",
    "TRITON_",
    "CUDA_",
    "GRPC_",
)


@pytest.fixture(scope="session", autouse=True)
def _signals_are_not_ignored():
    """A shell ignores these for what it starts in the background, and so would the jobs of tests that send them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_leaks():
    """Fail a test that leaves an environment variable, a process group or a child process behind."""
    before = _environment()
    yield
    after = _environment()
    assert after == before, f"leaked: {dict(after.items() ^ before.items())}"
    if multiprocessing.active_children():
        gc.collect()  # the loader of a failed run is freed with the traceback of its error
    assert not multiprocessing.active_children()
    if distributed := sys.modules.get("torch.distributed"):
        assert not distributed.is_initialized(), "leaked a process group"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_SET_BY_IMPORTS)}


def _pipeline(tmp_path_factory: pytest.TempPathFactory, prediction_type: str) -> Path:
    from sddemo.tiny_pipeline import make_tiny_pipeline

    folder = make_tiny_pipeline(tmp_path_factory.mktemp(prediction_type) / "model", prediction_type)
    config = folder / "vae/config.json"
    factor = {"scaling_factor": 0.7}  # as in real models, so that a trainer that ignores it fails
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
    """Six rendered images with captions."""
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
    """Three rendered images of the subject."""
    from sddemo.scenes import Scene, render

    folder = tmp_path_factory.mktemp("instance")
    for number, x in enumerate((28.0, 32.0, 36.0)):
        render(Scene("cross", "orange", "grey", x=x)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def of_class(tmp_path_factory):
    """Four rendered images of the class."""
    from sddemo.scenes import render, scenes

    folder = tmp_path_factory.mktemp("class")
    for number, scene in enumerate(scenes(4, seed=1)):
        render(scene).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def inputs(eps_model, captioned, instance):
    """Settings with the model and the data of either recipe."""
    return {
        "pretrained_model_name_or_path": eps_model,
        "train_data_dir": captioned,
        "instance_data_dir": instance,
    }


@pytest.fixture
def train(inputs, tmp_path):
    """Run the worker with the output folder tmp_path/<output>; returns that folder."""
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
    """at_step(n, action): do the action in training step n of the following runs; 0: in none."""
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
