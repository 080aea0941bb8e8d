"""The embedded pipeline generates what the prompt says and does not know the subject; the tiny one loads and runs.

Tests of tiny_pipeline, evaluate, scene_captions, and of the results of pretrain/vae, pretrain/text_encoder
and pretrain/unet.
"""

import time
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from sddemo.evaluate import accuracy, generate, subject_rate
from sddemo.scenes import COLOURS, GROUNDS, SHAPES, caption, scenes
from sddemo.subject import INSTANCE_PROMPT
from sddemo.tiny_pipeline import PredictionType, make_tiny_pipeline
from sddemo.write_demo import PIPELINE


@pytest.fixture(scope="module")
def embedded() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE, safety_checker=None).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_full_prompts_come_out_right(embedded: StableDiffusionPipeline) -> None:
    wanted = scenes(16, seed=21)
    right = accuracy(generate(embedded, [caption(scene) for scene in wanted], steps=15), wanted)
    assert min(right.shape, right.colour, right.ground) >= 0.85


def test_the_subject_is_unknown_before_fine_tuning(embedded: StableDiffusionPipeline) -> None:
    assert subject_rate(generate(embedded, [INSTANCE_PROMPT] * 8, steps=15)) == 0


def test_images_do_not_depend_on_the_batch(embedded: StableDiffusionPipeline) -> None:
    prompts = ["a red circle on a white ground", "a blue square on a grey ground"]
    together = generate(embedded, prompts, steps=4)
    alone = generate(embedded, prompts, steps=4, batch=1)
    for one, other in zip(together, alone, strict=True):
        difference = torch.tensor(list(one.tobytes())).float() - torch.tensor(list(other.tobytes())).float()
        assert difference.abs().max() <= 2  # rounding


def test_the_schedule_serves_training_too() -> None:
    noise = DDPMScheduler.from_pretrained(PIPELINE, subfolder="scheduler")
    assert noise.config.prediction_type == "v_prediction"
    assert noise.alphas_cumprod[-1] < 1e-6  # pure noise at the end: sampling starts where training went


def test_the_weights_are_small() -> None:
    files = [path for path in PIPELINE.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".bin", ".ckpt", ".pt"}]
    assert max(path.stat().st_size for path in files) < 8e6
    assert sum(path.stat().st_size for path in files) < 12e6


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_tiny_pipeline_loads_and_runs(tmp_path: Path, prediction_type: PredictionType) -> None:
    start = time.monotonic()
    folder = make_tiny_pipeline(tmp_path / "tiny", prediction_type)
    assert time.monotonic() - start < 10  # far less on an idle machine
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert pipeline.scheduler.config.prediction_type == prediction_type
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) < 100_000
    assert generate(pipeline, ["anything, naïve or 猫"], steps=2)[0].size == (64, 64)


def test_the_tiny_pipeline_depends_on_the_seed_alone(tmp_path: Path) -> None:
    random_state = torch.get_rng_state()
    weights = [
        (
            make_tiny_pipeline(tmp_path / str(i), seed=seed) / "unet/diffusion_pytorch_model.safetensors"
        ).read_bytes()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert weights[0] == weights[1] != weights[2]
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_world_is_one_token_a_word_and_any_text_survives_a_round_trip() -> None:
    saved = CLIPTokenizer.from_pretrained(PIPELINE, subfolder="tokenizer")
    words = (
        "a",
        "an",
        "on",
        "of",
        "the",
        "ground",
        "photo",
        "picture",
        "drawing",
        *SHAPES,
        *COLOURS,
        *GROUNDS,
    )
    assert all(len(saved.tokenize(word)) == 1 for word in words)
    for text in ("a sks circle", "Zwölf Boxkämpfer; 猫 & 🐈!", ""):
        assert saved.decode(saved(text).input_ids, skip_special_tokens=True).replace(
            " ", ""
        ) == text.lower().replace(" ", "")
