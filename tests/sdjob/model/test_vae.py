"""Another VAE than the model's: which paths are one, and which do not fit."""

import json
import shutil

import pytest

from sdjob.model.pipeline import find_pipeline
from sdjob.output import fingerprint
from sdjob.problems import JobError
from tests.support.pipeline import make_fitting, tiny_tensors, zeros


@pytest.fixture
def model(tmp_path):
    return make_fitting(tmp_path / "model")


@pytest.fixture
def vae(model, tmp_path):
    """A folder with a VAE alone."""
    return shutil.copytree(model / "vae", tmp_path / "vae")


def found(model, vae):
    return find_pipeline(model, None, allow_pickle=False, vae=str(vae))


def problem_of(model, vae):
    with pytest.raises(JobError) as caught:
        found(model, vae)
    (problem,) = caught.value.problems
    assert problem.code == 66
    return problem


def test_a_folder_with_a_vae_or_a_pipeline(model, vae, tmp_path):
    assert found(model, vae).parts["vae"].folder == vae
    other = make_fitting(tmp_path / "other")
    pipeline = found(model, other)
    assert pipeline.parts["vae"].folder == other / "vae"
    assert pipeline.own_vae.folder == model / "vae"
    assert pipeline.parts["unet"].folder == model / "unet"


def test_the_identity_of_the_model_is_that_of_the_vae_too(model, vae):
    identities = [fingerprint.model_facts(found(model, path)) for path in (model, vae)]
    assert identities == [fingerprint.model_facts(find_pipeline(model, None, allow_pickle=False))] * 2
    (vae / "config.json").write_text(json.dumps(json.loads((vae / "config.json").read_text()) | {"a": 1}))
    assert fingerprint.model_facts(found(model, vae)) != identities[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent_channels": 16}, "has latent_channels 16, and the model's own VAE 4"),
        ({"scaling_factor": 0.13025}, "has scaling_factor 0.13025, and the model's own VAE 0.18215"),
        ({"block_out_channels": [2]}, "has number of blocks 1, and the model's own VAE 2"),
        ({"_class_name": "AutoencoderTiny"}, "is a AutoencoderTiny, and this model needs a VAE of class"),
    ],
)
def test_a_vae_of_another_model(model, vae, values, message):
    (vae / "config.json").write_text(json.dumps(json.loads((vae / "config.json").read_text()) | values))
    problem = problem_of(model, vae)
    assert problem.subject == str(vae) and problem.found.startswith(message)


def test_paths_that_are_not_a_vae(model, tmp_path):
    assert "does not exist" in problem_of(model, tmp_path / "none").found
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").touch()
    assert "it holds no config.json, and 1.png" in problem_of(model, tmp_path / "images").found
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(zeros({"unet.a.lora_A.weight": [2, 2]}))
    assert "is not a VAE in the layout of the original: it holds 1 tensor" in problem_of(model, lora).found


def test_one_file_has_the_config_of_the_own_vae(model, tmp_path):
    file = tmp_path / "vae.safetensors"
    for prefix in ("", "first_stage_model."):
        names = {f"{prefix}{name}": shape for name, shape in tiny_tensors("vae").items()}
        file.write_bytes(zeros(names))
        part = found(model, file).parts["vae"]
        assert (part.folder, part.config) == (
            file,
            find_pipeline(model, None, allow_pickle=False).parts["vae"].config,
        )
        assert "decoder.conv_in.weight" in part.tensors
