"""One run on several processes: the same global batch gives the same losses and weights."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from tests.support.worker import DEFAULTS, assert_same_weights, losses, scalars, snapshot, torchrun

# The same sums in another order: fp32 rounding.
TOLERANCE = 1e-5
CASES = {
    "text_to_image": {},
    "lora": {"lora_rank": 2},
    "prior": {
        "recipe": "dreambooth",
        "with_prior_preservation": True,
        "class_prompt": "a photo of a cross",
        "num_class_images": 3,
    },
    "ema_and_flips": {"use_ema": True, "ema_decay": 0.5, "random_flip": True},
    "objective": {
        "snr_gamma": 5.0,
        "noise_offset": 0.1,
        "input_perturbation": 0.1,
        "proportion_empty_prompts": 0.5,
    },
    "text_encoder": {"train_text_encoder": True, "text_encoder_lr": 1e-4, "lora_rank": 2},
    "checkpointing": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
}
# processes × accumulation × batch = 4
SHAPES = [(2, 1, 2), (2, 2, 1), (4, 1, 1)]


def assert_same(one, other):
    assert losses(other) == pytest.approx(losses(one), rel=TOLERANCE)
    norms, others = (scalars(output)["train/grad_norm"] for output in (one, other))
    assert others == pytest.approx(norms, rel=1e-4)
    steps = len(norms)
    file = f"checkpoint/checkpoint-{steps:06d}/model.safetensors"
    assert_same_weights(load_file(other / file), load_file(one / file), DEFAULTS["learning_rate"] * steps)


@pytest.mark.parametrize("case", CASES)
def test_one_and_two_processes(train, case):
    alone = train("alone", train_batch_size=4, **CASES[case])
    both = train("both", ranks=2, train_batch_size=2, **CASES[case])
    assert_same(alone, both)


@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}x{0[2]}".format)
def test_every_shape_of_the_same_batch(train, shape):
    ranks, accumulation, batch = shape
    alone = train("alone", train_batch_size=4)
    shared = train("shared", ranks=ranks, gradient_accumulation_steps=accumulation, train_batch_size=batch)
    assert_same(alone, shared)
    report = json.loads((shared / "report.json").read_text())
    assert report["world_size"] == ranks
    assert report["global_batch_size"] == 4
    assert report["batch_size"] == batch


def test_torchrun(train, inputs, tmp_path):
    alone = train("alone", train_batch_size=2)
    output = tmp_path / "torchrun"
    with torchrun(2, **inputs, output_dir=output) as process:
        out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    assert_same(alone, output)
    assert out.count("starting from the beginning") == 1  # only the first rank speaks
    assert "training: steps 1 to 3; 2 of 6 images in a step; 2 × cpu; fp32" in out
    assert "warn" not in out.lower().replace("omp_num_threads", ""), out


def test_class_images_are_the_same_on_any_number_of_processes(train):
    settings = {**CASES["prior"], "max_train_steps": 1, "sample_batch_size": 2}
    alone, both = train("alone", **settings), train("both", ranks=2, **settings)
    assert snapshot(both / "class_images") == snapshot(alone / "class_images")
    assert len(snapshot(alone / "class_images")) == 3


def test_only_the_first_rank_writes_the_outputs(train):
    output = train(ranks=2, validation_prompts=["a cross", "a circle", "a square"], num_validation_images=1)
    assert len(list((output / "tensorboard").iterdir())) == 1
    drawn = sorted(path.name for path in (output / "samples/step-000003").iterdir())
    assert drawn == ["prompt00-00.png", "prompt01-00.png", "prompt02-00.png", "prompts.json"]


def test_an_error_of_one_rank_ends_all(train, capfd, captioned, tmp_path):
    """The corrupt image is in the share of rank 1 alone; rank 0 must not wait for it."""
    data = shutil.copytree(captioned, tmp_path / "data")
    (data / "1.png").write_bytes(b"no image")
    train(ranks=2, code=66, train_data_dir=data)
    assert str(data / "1.png") in capfd.readouterr().err
