"""Training from a model in one file: the same losses as from its folder, and the same file at the end."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from sddemo.tiny_pipeline import make_tiny_xl_pipeline
from sdtrain.export import export
from tests.support import worker
from tests.support.launcher import prepare
from tests.support.worker import losses

QUICK = {"max_train_steps": 2, "center_crop": True}


@pytest.fixture(scope="module")
def xl_model(tmp_path_factory):
    return make_tiny_xl_pipeline(tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture(params=["eps_model", "xl_model"])
def inputs(request, captioned, instance):
    return {
        "pretrained_model_name_or_path": request.getfixturevalue(request.param),
        "train_data_dir": captioned,
        "instance_data_dir": instance,
    }


@pytest.fixture
def one_file(train, inputs, tmp_path):
    """The model in one file, with the settings that name it: trained by next to nothing."""
    given = {**QUICK, "max_train_steps": 1, "learning_rate": 1e-30, "adam_weight_decay": 0}
    folder = train("first", export_single_file=True, **given)
    file = shutil.copy(folder / "checkpoint" / export.WEBUI_MODEL, tmp_path / "my model.safetensors")
    base = inputs["pretrained_model_name_or_path"]
    return {"pretrained_model_name_or_path": file, "single_file_config": base}


def test_the_losses_are_those_of_the_folder(train, one_file, tmp_path):
    """Also on two processes, of which one converts; and the result is whole, as a folder and as a file."""
    settings = {**QUICK, "train_batch_size": 2}
    wanted = train("folder", export_single_file=True, **settings)
    found = train("file", export_single_file=True, **settings, **one_file)
    assert losses(found) == losses(wanted)
    shared = train("ranks", ranks=2, **QUICK, **one_file)
    assert losses(shared) == pytest.approx(losses(wanted), rel=1e-5)
    for name in ("unet/diffusion_pytorch_model.safetensors", export.WEBUI_MODEL):
        mine, theirs = (load_file(folder / "checkpoint" / name) for folder in (found, wanted))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_it_resumes_wherever_the_file_and_its_folder_lie(train, one_file, tmp_path, capsys):
    undisturbed = train("undisturbed", **{**QUICK, "max_train_steps": 4}, **one_file)
    output = train(**QUICK, **one_file)
    shutil.rmtree(output / "cache")
    moved = shutil.move(one_file["pretrained_model_name_or_path"], tmp_path / "moved.safetensors")
    given = {**one_file, "pretrained_model_name_or_path": moved, "cache_dir": tmp_path / "caches"}
    capsys.readouterr()
    train(**{**QUICK, "max_train_steps": 4}, **given)
    assert "resuming from" in capsys.readouterr().out
    assert losses(output) == losses(undisturbed)
    assert [path.name[:6] for path in (tmp_path / "caches").iterdir()] == ["model-"]


@pytest.mark.parametrize("inputs", ["eps_model"], indirect=True)
def test_class_images_samples_and_a_lora(train, one_file):
    settings = {
        "recipe": "dreambooth",
        "lora_rank": 2,
        "with_prior_preservation": True,
        "num_class_images": 2,
    }
    drawn = {"class_prompt": "a cross", "validation_prompts": ["a red cross"], "num_validation_images": 1}
    output = train(**QUICK, **settings, **drawn, **one_file)
    assert len(list((output / "class_images").rglob("*.png"))) == 2
    assert (output / "samples/before_after.png").is_file()
    pipeline = StableDiffusionPipeline.from_pretrained(one_file["single_file_config"])
    pipeline.load_lora_weights(output / "checkpoint")
    card = (output / "checkpoint/README.md").read_text()
    assert 'StableDiffusionPipeline.from_single_file("my model.safetensors")' in card
    assert str(output.parent) not in card


@pytest.mark.parametrize("inputs", ["eps_model"], indirect=True)
def test_another_prediction_is_another_model(train, one_file, captioned, capsys):
    output = train(**QUICK, **one_file)
    mounts = {
        "MODEL_DIR": str(one_file["pretrained_model_name_or_path"]),
        "DATASET_DIR": str(captioned),
        "OUTPUT_DIR": str(output),
        "single_file_config": str(one_file["single_file_config"]),
        "center_crop": "1",
    }
    settings = {name: str(worker.DEFAULTS[name]) for name in ("recipe", "resolution", "seed", "device")}
    job = prepare({**mounts, **settings}, num_train_step="2")
    assert (job.problems, job.arithmetic[-1]) == ((), "resume: already finished, at step 2")
    capsys.readouterr()
    train(code=64, **{**QUICK, "max_train_steps": 3}, **one_file, prediction_type="v_prediction")
    assert "model_name" in capsys.readouterr().err
    assert (output / "checkpoint/model_index.json").is_file()
