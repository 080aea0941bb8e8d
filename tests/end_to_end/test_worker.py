"""Each recipe, whole and as LoRA: the result loads in diffusers, generates, and nothing else was changed.

Tests of sdtrain.run, sdtrain.loop, sdtrain.context, sdtrain.training and sdtrain.data.examples.
"""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from sdtrain import loop
from tests.support.worker import losses, scalars, snapshot

DREAMBOOTH = {"recipe": "dreambooth", "instance_prompt": "a photo of sks cross"}
PRIOR = {
    **DREAMBOOTH,
    "with_prior_preservation": True,
    "class_prompt": "a photo of a cross",
    "num_class_images": 2,
}
RECIPES = {"text_to_image": {"recipe": "text_to_image"}, "dreambooth": DREAMBOOTH, "prior": PRIOR}


def image(pipeline: StableDiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        "a cross", height=32, width=32, num_inference_steps=2, generator=generator, output_type="np"
    ).images[0]


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_result_loads_and_draws(recipe, lora_rank, train, inputs, eps_model):
    folders = [inputs[name] for name in inputs]
    before = [snapshot(folder) for folder in folders]
    output = train(**RECIPES[recipe], lora_rank=lora_rank, max_train_steps=2, learning_rate=1e-2)
    assert [snapshot(folder) for folder in folders] == before

    base = image(StableDiffusionPipeline.from_pretrained(eps_model))
    if lora_rank:
        pipeline = StableDiffusionPipeline.from_pretrained(eps_model)
        pipeline.load_lora_weights(output / "checkpoint")
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(output / "checkpoint")
        frozen = {name for name in before[0] if name.split("/")[0] != "unet"}
        assert {name: snapshot(output / "checkpoint")[name] for name in frozen} == {
            name: before[0][name] for name in frozen
        }
    drawn = image(pipeline)
    assert drawn.shape == (32, 32, 3)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn - base).max() > 1e-3  # it is the trained one that draws
    assert (output / "class_images").exists() == (recipe == "prior")


def test_a_v_prediction_model_stays_one(train, v_model):
    output = train(pretrained_model_name_or_path=v_model, max_train_steps=1)
    pipeline = StableDiffusionPipeline.from_pretrained(output / "checkpoint")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert np.isfinite(image(pipeline)).all()


def test_only_what_is_trained_changes(train, eps_model):
    before = load_file(eps_model / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(train() / "checkpoint/unet/diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(weight.dtype == torch.float32 for weight in after.values())


def test_epochs_become_steps(train):
    """2 epochs of 6 images, 2 × 2 at a time: 3 steps."""
    output = train(
        max_train_steps=None, num_train_epochs=2, train_batch_size=2, gradient_accumulation_steps=2
    )
    report = json.loads((output / "report.json").read_text())
    assert (report["max_train_steps"], report["steps"]) == (3, 3)
    assert scalars(output)["train/epoch"] == pytest.approx({1: 4 / 6, 2: 8 / 6, 3: 2.0})


def test_epochs_give_way_to_steps(train):
    assert len(losses(train(max_train_steps=2, num_train_epochs=5))) == 2


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_gradient_checkpointing_changes_no_loss(train, lora_rank):
    plain = train("plain", lora_rank=lora_rank)
    recomputed = train("recomputed", lora_rank=lora_rank, gradient_checkpointing=True)
    assert losses(recomputed) == pytest.approx(losses(plain), rel=1e-6)
    norms = [scalars(output)["train/grad_norm"] for output in (plain, recomputed)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_loader_processes_change_no_loss(train):
    settings = {"random_flip": True, "train_batch_size": 2}
    plain, loaded = train("plain", **settings), train("loaded", dataloader_num_workers=2, **settings)
    assert losses(loaded) == losses(plain)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_bf16_trains_fp32_masters(train, lora_rank):
    settings = {"lora_rank": lora_rank, "train_text_encoder": True}
    plain = train("plain", **settings)
    output = train(mixed_precision="bf16", **settings, validation_prompts=["a cross"])
    assert json.loads((output / "report.json").read_text())["precision"] == "bf16"
    assert losses(output) != losses(plain)  # it is another type that computes
    assert losses(output) == pytest.approx(losses(plain), rel=0.05)
    weights = load_file(output / "checkpoint/checkpoint-000003/model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    # In bf16 a step of this size would be lost on most weights.
    moved = [weight for weight in weights.values() if not torch.equal(weight, weight.bfloat16().float())]
    assert len(moved) > 0.9 * len(weights)


def test_a_step_never_waits_for_the_device(train, monkeypatch):
    """Nothing of a step, once its images are there, reads a number from a tensor: on a GPU that would wait."""
    step = loop.optimizer_step
    settings = {"gradient_accumulation_steps": 2, "use_ema": True, "snr_gamma": 5.0, "noise_offset": 0.1}
    steps = []

    def watched(training, batches, *more):
        ready = [next(batches) for _ in range(training.shape.accumulation)]
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
                patch.setattr(torch.Tensor, name, waits)
            steps.append(step(training, iter(ready), *more))
        return steps[-1]

    def waits(*_, **__):
        raise AssertionError("a number is read from a tensor in the middle of a step")

    monkeypatch.setattr(loop, "optimizer_step", watched)
    train(**settings)
    assert len(steps) == 3


def test_long_captions_are_named_before_training(train, capsys):
    long = "a red cross on a white ground " * 20
    train(recipe="dreambooth", instance_prompt=long, validation_prompts=["a cross", long], max_train_steps=1)
    out = capsys.readouterr().out
    assert "1 of 1 instance prompts are longer than 75 tokens and are cut" in out
    assert "1 of 2 validation prompts are longer than 75 tokens and are cut" in out


def test_the_learning_rate_is_that_of_the_schedule(train):
    output = train(max_train_steps=4, lr_scheduler="linear", lr_warmup_steps=2, train_batch_size=2)
    found = scalars(output)["train/learning_rate"]
    assert found == pytest.approx({1: 0.0, 2: 5e-4, 3: 1e-3, 4: 5e-4})


def test_the_seed_decides(train):
    first, again, other = train("first"), train("again"), train("other", seed=8)
    assert losses(first) == losses(again) != losses(other)
