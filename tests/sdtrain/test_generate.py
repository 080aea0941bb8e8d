"""Generated images: a function of prompt and seed, by the library and by the command.

Tests of sdtrain.generate, sdtrain.model.generation and sdjob.output.run_settings.
"""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageChops

from sdjob.model.pipeline import find_pipeline
from sdjob.output.checkpoint_files import SETTINGS
from sdjob.output.layout import write_manifest
from sdtrain import generate
from sdtrain.architectures.base import GenerationSettings
from sdtrain.model import load
from tests.support.worker import flags

HOW = GenerationSettings(resolution=32, inference_steps=2, guidance_scale=3.0, batch_size=2)


@pytest.fixture(scope="module")
def parts(eps_model):
    source = find_pipeline(eps_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


@pytest.fixture(scope="module")
def xl_parts(xl_model):
    source = find_pipeline(xl_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


def distance(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_an_image_depends_on_prompt_and_seed_alone(parts):
    first, second, third = generate.generate(parts, ["a", "b", "a"], [1, 1, 2], HOW)
    (alone,) = generate.generate(parts, ["b"], [1], HOW)
    assert distance(alone, second) <= 1  # rounding of a batch of another size
    assert distance(first, second) > 1 < distance(first, third)


def test_prompts_mean_what_they_mean_to_the_pipeline(parts):
    pipeline = StableDiffusionPipeline(**parts.components, safety_checker=None, feature_extractor=None)
    (wanted,) = pipeline(
        "a red cross",
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
    ).images
    (found,) = generate.generate(parts, ["a red cross"], [1], HOW)
    assert distance(found, wanted) == 0


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("prompt", ["a red cross", ""])
def test_prompts_mean_what_they_mean_to_the_pipeline_of_xl(xl_parts, prompt, zeros):
    """Without a negative prompt it uses zeros, or the encoding of the empty prompt."""
    parts = replace(xl_parts, index={"force_zeros_for_empty_prompt": zeros})
    pipeline = StableDiffusionXLPipeline(**parts.components, force_zeros_for_empty_prompt=zeros)
    given = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    (wanted,) = pipeline(prompt, generator=torch.Generator().manual_seed(1), **given).images
    (found,) = generate.generate(parts, [prompt], [1], HOW)
    assert distance(found, wanted) == 0


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_the_end_of_a_long_prompt_counts_where_it_is_encoded_in_chunks(parts, xl_parts, kind):
    parts = {"sd": parts, "xl": xl_parts}[kind]
    prompts = [f"{'a red cross ' * 40}{ending}" for ending in ("on a black ground", "on a white ground")]
    cut = list(generate.generate(parts, prompts, [1, 1], HOW))
    assert distance(*cut) == 0
    whole = list(generate.generate(parts, prompts, [1, 1], replace(HOW, prompt_chunks=3)))
    assert distance(*whole) > 0


def test_generating_leaves_the_modes_of_the_parts(parts):
    parts.denoiser.train()
    list(generate.generate(parts, ["a"], [1], HOW))
    assert parts.denoiser.training
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    parts.denoiser.eval()
    list(generate.generate(parts, ["a"], [1], HOW))
    assert not parts.denoiser.training


def test_generating_does_not_move_the_global_random_state(parts):
    state = torch.random.get_rng_state()
    list(generate.generate(parts, ["a"], [1], HOW))
    assert torch.equal(torch.random.get_rng_state(), state)


def command(model, output, *more) -> int:
    settings = ["--num_images", "2", "--seed", "1", "--num_inference_steps", "2", "--device", "cpu"]
    given = [str(model), "--prompts", "a red cross", "a circle", "--output", str(output)]
    return generate.main([*given, *settings, *more])


def test_the_command_writes_the_images_of_every_prompt(eps_model, parts, tmp_path):
    assert command(eps_model, tmp_path / "out", "--guidance_scale", "3") == 0
    names = [f"prompt{prompt:02d}-{number:02d}.png" for prompt in (0, 1) for number in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "prompts.json"]
    how = replace(HOW, resolution=64)  # of the model
    (wanted,) = generate.generate(parts, ["a circle"], [2], how)
    assert distance(Image.open(tmp_path / "out" / names[3]), wanted) <= 1


def test_the_command_takes_a_lora_with_its_base(eps_model, train, tmp_path, capsys):
    lora = train(lora_rank=2, max_train_steps=1, learning_rate=0.5) / "checkpoint"
    assert command(lora, tmp_path / "out") == 64
    assert "--base_model: not given" in capsys.readouterr().err
    assert command(lora, tmp_path / "lora", "--base_model", str(eps_model)) == 0
    assert command(eps_model, tmp_path / "base") == 0
    one, other = (Image.open(tmp_path / name / "prompt00-00.png") for name in ("lora", "base"))
    assert distance(one, other) > 0


@pytest.mark.parametrize(
    "settings",
    [{"use_ema": True, "ema_decay": 0.5}, {"train_text_encoder": True, "plugin": "fsdp"}, {"lora_rank": 2}],
)
def test_the_command_takes_a_step_checkpoint(inputs, train, tmp_path, capsys, settings):
    """It generates what the result generates: of the EMA, from shards, with a LoRA."""
    settings = {"max_train_steps": 2, "learning_rate": 0.1, **settings}
    output = train(**settings)
    checkpoint = output / "checkpoint/checkpoint-000002"
    assert command(checkpoint, tmp_path / "step") == 0
    base = str(inputs["pretrained_model_name_or_path"])
    assert command(output / "checkpoint", tmp_path / "result", "--base_model", base) == 0
    assert command(base, tmp_path / "base") == 0
    step, result, untrained = (
        Image.open(tmp_path / name / "prompt00-00.png") for name in ("step", "result", "base")
    )
    assert distance(step, result) <= 1 < distance(step, untrained)
    assert command(checkpoint, tmp_path / "raw", "--weights", "raw") == 0
    raw = Image.open(tmp_path / "raw/prompt00-00.png")
    assert (distance(step, raw) > 1) == settings.get("use_ema", False)
    assert command(checkpoint, tmp_path / "ema", "--weights", "ema") == (0 if settings.get("use_ema") else 64)


def test_an_older_step_checkpoint_needs_the_plan_of_its_run(inputs, train, tmp_path, capsys):
    output = train(max_train_steps=1, learning_rate=0.1)
    checkpoint = output / "checkpoint/checkpoint-000001"
    (checkpoint / SETTINGS).unlink()
    write_manifest(checkpoint)
    assert command(checkpoint, tmp_path / "out") == 66
    assert "the plan of its run" in capsys.readouterr().err
    argv = ["python", "-m", "sdtrain", *flags(**inputs, output_dir=output)]
    (output / "run").mkdir(exist_ok=True)
    for broken in ("{", "[]", '{"argv": 3}', '{"argv": ["python"]}', '{"argv": ["sdtrain", 3]}'):
        (output / "run/plan.json").write_text(broken)
        assert command(checkpoint, tmp_path / "out") == 66
        assert "plan.json" in capsys.readouterr().err
    (output / "run/plan.json").write_text(json.dumps({"argv": argv}))
    assert command(checkpoint, tmp_path / "step") == 0
    (output / "run/plan.json").write_text(
        json.dumps({"argv": [*argv, "--pretrained_model_name_or_path=/gone"]})
    )
    assert command(checkpoint, tmp_path / "moved") == 64
    assert "/gone does not exist" in capsys.readouterr().err
    base = str(inputs["pretrained_model_name_or_path"])
    assert command(checkpoint, tmp_path / "moved", "--base_model", base) == 0


def test_a_step_checkpoint_is_of_one_model(train, v_model, tmp_path, capsys):
    checkpoint = train(max_train_steps=1) / "checkpoint/checkpoint-000001"
    assert command(checkpoint, tmp_path / "out", "--base_model", str(v_model)) == 66
    assert "is not the model that checkpoint-000001 was trained on" in capsys.readouterr().err
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert command(checkpoint, tmp_path / "out") == 66
    assert "model.safetensors has changed since it was saved" in capsys.readouterr().err


def test_mistakes_of_the_command(eps_model, tmp_path, capsys):
    assert command(tmp_path, tmp_path / "out") == 66
    assert command(eps_model, tmp_path / "out", "--resolution", "33") == 64
    assert command(eps_model, tmp_path / "out", "--unknown") == 64
    (tmp_path / "file").touch()
    assert command(eps_model, tmp_path / "file") == 73
    (tmp_path / "state.json").touch()
    assert command(tmp_path, tmp_path / "out") == 66
    assert "the save did not finish" in capsys.readouterr().err
