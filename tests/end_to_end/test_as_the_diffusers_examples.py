"""What the example scripts of diffusers promise of their results (their tests in examples/text_to_image and
examples/dreambooth), by the same flags: the files, how many checkpoints stay, and the prefixes of a LoRA's keys.

Here step folders have six digits, and there is a checkpoint at the end too.
"""

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from sdjob.model.trainable import LORA_FILE

FLAGS = {
    "resolution": 64,
    "center_crop": True,
    "random_flip": True,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-4,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
}


def steps(output) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in (output / "checkpoint").glob("checkpoint-*"))


@pytest.mark.parametrize("recipe", ["text_to_image", "dreambooth"])
@pytest.mark.parametrize("model", ["eps_model", "xl_model"])
def test_a_whole_pipeline(train, request, recipe, model):
    folder = request.getfixturevalue(model)
    output = train(recipe=recipe, pretrained_model_name_or_path=folder, max_train_steps=1, **FLAGS)
    result = output / "checkpoint"
    assert (result / "unet/diffusion_pytorch_model.safetensors").is_file()
    assert (result / "scheduler/scheduler_config.json").is_file()
    pipeline = DiffusionPipeline.from_pretrained(result, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a prompt", num_inference_steps=1).images[0].size == (64, 64)


@pytest.mark.parametrize("settings", [{}, {"use_ema": True}, {"lora_rank": 4, "recipe": "dreambooth"}])
def test_checkpoints_stay_up_to_the_limit_after_a_resume_too(train, settings):
    settings = {**FLAGS, "checkpointing_steps": 2, **settings}
    output = train(max_train_steps=7, checkpoints_total_limit=2, **settings)
    assert steps(output) == [6, 7]
    output = train("all", max_train_steps=9, **settings)
    assert steps(output) == [2, 4, 6, 8, 9]
    # One more checkpoint removes several.
    again = {"resume": output / "checkpoint/checkpoint-000008", "checkpoints_total_limit": 3}
    assert steps(train("all", max_train_steps=10, **settings, **again)) == [6, 8, 10]


@pytest.mark.parametrize(
    ("model", "settings", "prefixes"),
    [
        ("eps_model", {}, {"unet"}),
        ("eps_model", {"train_text_encoder": True}, {"unet", "text_encoder"}),
        ("xl_model", {}, {"unet"}),
        ("xl_model", {"train_text_encoder": True}, {"unet", "text_encoder", "text_encoder_2"}),
    ],
)
def test_the_keys_of_a_lora(train, request, model, settings, prefixes):
    folder = request.getfixturevalue(model)
    given = {"recipe": "dreambooth", "pretrained_model_name_or_path": folder, "lora_rank": 4, **settings}
    output = train(max_train_steps=1, **FLAGS, **given)
    keys = load_file(output / "checkpoint" / LORA_FILE)
    assert all("lora" in key for key in keys)
    assert {key.partition(".")[0] for key in keys} == prefixes
