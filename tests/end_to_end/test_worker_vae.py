"""Training with another VAE than the model's: in the loss, in the result, in what a resume compares."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from sdjob.model import key_names
from tests.support.launcher import prepare
from tests.support.worker import DEFAULTS, losses, snapshot

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae(eps_model, tmp_path):
    """The model's VAE with other weights, as a folder."""
    folder = shutil.copytree(eps_model / "vae", tmp_path / "vae")
    weights = {name: 1.1 * weight for name, weight in load_file(folder / FILE).items()}
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    return folder


def test_the_vae_that_is_named_is_used_and_exported(train, eps_model, vae):
    own, other = train("own"), train("other", vae=vae)
    assert losses(own) != losses(other)
    assert snapshot(other / "checkpoint/vae") == snapshot(vae)
    same = train("same", vae=eps_model)
    assert losses(same) == losses(own)
    train("other", vae=None, max_train_steps=4, code=64)  # another model for the checkpoint
    train("other", vae=vae, max_train_steps=4)


def test_a_vae_in_one_file(train, eps_model, captioned, vae, tmp_path):
    config = json.loads((vae / "config.json").read_text())
    weights = load_file(vae / FILE)
    names = key_names.original_tensors("stable-diffusion", "vae", config, weights)
    originals = {
        names[name].name.removeprefix(key_names.VAE): weight[:, :, None, None]
        if names[name].pixelwise
        else weight
        for name, weight in weights.items()
    }
    save_file({name: weight.contiguous() for name, weight in originals.items()}, tmp_path / "vae.safetensors")
    folder, file = train("folder", vae=vae), train("file", vae=tmp_path / "vae.safetensors")
    assert losses(file) == losses(folder)
    found = load_file(file / "checkpoint/vae" / FILE)
    assert found.keys() == weights.keys() and all((found[name] == weights[name]).all() for name in weights)
    # From the cache, and with the same identity; the launcher sees the same.
    same = {"MODEL_DIR": str(eps_model), "DATASET_DIR": str(captioned), "OUTPUT_DIR": str(file)}
    flags = {name: str(value) for name, value in DEFAULTS.items() if name != "learning_rate"}
    job = prepare({**same, **flags}, vae=str(tmp_path / "vae.safetensors"), max_train_steps="4")
    assert "resume: from step 3 of 4" in job.arithmetic and job.problems == ()
    (problem,) = prepare({**same, **flags}, max_train_steps="4").problems
    assert (problem.code, problem.subject) == (64, "model_name")
    train("file", vae=tmp_path / "vae.safetensors", max_train_steps=4)
