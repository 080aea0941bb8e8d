"""The command `bash train.sh generate`, from its words to files.

Tests of sdtrain.generate.images, sdtrain.generate.sources, sdtrain.generate.options,
sdtrain.generate.samplers and sdjob.output.run_settings.
"""

import json
import multiprocessing
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageChops

from sdjob.output.checkpoint_files import SETTINGS
from sdjob.output.layout import write_manifest
from sdtrain.generate import __main__ as generate
from sdtrain.generate import images, samplers
from tests.support.worker import environment, flags, snapshot


def distance(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def command(model, output, *more) -> int:
    settings = ["--num_images", "2", "--seed", "1", "--num_inference_steps", "2", "--device", "cpu"]
    given = [str(model), "--prompts", "a red cross", "a circle", "--output", str(output)]
    return generate.main([*given, *settings, *more])


def test_the_command_writes_the_images_of_every_prompt(eps_model, tmp_path):
    assert command(eps_model, tmp_path / "out", "--guidance_scale", "3") == 0
    names = [f"prompt{prompt:02d}-{number:02d}.png" for prompt in (0, 1) for number in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "prompts.json"]
    assert json.loads((tmp_path / "out/prompts.json").read_text()) == ["a red cross", "a circle"]
    alone = ["--prompts", "a circle", "--seed", "2", "--num_images", "1", "--guidance_scale", "3"]
    assert command(eps_model, tmp_path / "alone", *alone) == 0
    found, wanted = (Image.open(tmp_path / name) for name in (f"out/{names[3]}", "alone/prompt00-00.png"))
    assert found.size == (64, 64) and distance(found, wanted) <= 1  # that of the model


def test_the_command_takes_a_lora_with_its_base(eps_model, train, tmp_path, capsys):
    lora = train(lora_rank=2, max_train_steps=1, learning_rate=0.5) / "checkpoint"
    assert command(lora, tmp_path / "of run") == 0  # its base is that of the step checkpoints
    shutil.rmtree(lora / "checkpoint-000001")
    assert command(lora, tmp_path / "out") == 64
    assert "--base_model: not given" in capsys.readouterr().err
    assert command(lora, tmp_path / "lora", "--base_model", str(eps_model)) == 0
    assert command(eps_model, tmp_path / "base") == 0
    one, other, third = (
        Image.open(tmp_path / name / "prompt00-00.png") for name in ("lora", "base", "of run")
    )
    assert distance(one, other) > 0 == distance(one, third)


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


def parameters(file) -> tuple[list[str], dict[str, str]]:
    """The lines before the last one, and its pairs, by the pattern of WebUI's modules/infotext_utils.py."""
    *lines, last = Image.open(file).text["parameters"].split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    return lines, dict(pairs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_image_says_how_it_was_made(eps_model, train, tmp_path):
    lora = train(lora_rank=2, max_train_steps=1, learning_rate=0.5) / "checkpoint/webui/lora.safetensors"
    more = [
        "--negative_prompt",
        "a 蓝 square, big",
        "--scheduler",
        "euler_a",
        "--height",
        "32",
        "--width",
        "40",
    ]
    assert command(eps_model, tmp_path / "out", *more, "--lora", str(lora), "--lora_scale", "0.5") == 0
    lines, pairs = parameters(tmp_path / "out/prompt01-01.png")
    assert lines == ["a circle <lora:lora:0.5>", "Negative prompt: a 蓝 square, big"]
    wanted = {"Steps": "2", "Sampler": "Euler a", "CFG scale": "7.5", "Seed": "2", "Size": "40x32"}
    assert pairs == {**wanted, "Model": "model"}
    assert command(eps_model, tmp_path / "twice", *more, "--lora", str(lora), "--lora_scale", "0.5") == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "twice")  # also with noise in every step
    assert command(eps_model, tmp_path / "none", *more, "--lora", str(lora), "--lora_scale", "0") == 0
    assert command(eps_model, tmp_path / "base", *more) == 0
    found = {name: Image.open(tmp_path / name / "prompt00-00.png") for name in ("out", "none", "base")}
    assert distance(found["none"], found["base"]) == 0 < distance(found["out"], found["base"])


def test_values_with_commas_are_quoted(tmp_path):
    info = images.png_info("two\nlines", "", {"Steps": 2, "Model": 'a "b", c: d'})
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png", pnginfo=info)
    lines, pairs = parameters(tmp_path / "image.png")
    assert lines == ["two", "lines"] and json.loads(pairs["Model"]) == 'a "b", c: d' and pairs["Steps"] == "2"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, of diffusers' schedulers
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_generates(v_model, tmp_path, name):
    """With the noise schedule and the prediction type of the model."""
    assert command(v_model, tmp_path, "--scheduler", name, "--num_images", "1", "--resolution", "32") == 0
    assert parameters(tmp_path / "prompt00-00.png")[1]["Sampler"] == samplers.SAMPLERS[name].webui


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sigmas_of_karras_and_a_schedule_that_ends_in_pure_noise(v_model, tmp_path, capsys):
    """diffusers takes the second of two equal timesteps for the first, and an index out of bounds."""
    model = tmp_path / "model"
    shutil.copytree(v_model, model)
    config = model / "scheduler/scheduler_config.json"
    schedule = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02}
    config.write_text(json.dumps(json.loads(config.read_text()) | schedule))
    words = ["--resolution", "32", "--num_images", "1", "--num_inference_steps", "10"]
    assert command(model, tmp_path / "out", *words, "--scheduler", "dpmpp_2m_karras") == 64
    assert "ends in almost pure noise" in capsys.readouterr().err
    assert command(model, tmp_path / "out", *words, "--scheduler", "dpmpp_2m") == 0


def test_a_file_of_prompts(eps_model, tmp_path):
    (tmp_path / "lines.txt").write_text("\ufeffa 红 cross\n\n  a circle \n")
    (tmp_path / "list.json").write_text('["a square"]')
    for name, prompts in (("lines.txt", ["a 红 cross", "a circle"]), ("list.json", ["a square"])):
        words = ["--prompts_file", str(tmp_path / name), "--num_inference_steps", "1"]
        assert generate.main([str(eps_model), "--output", str(tmp_path / "out"), *words]) == 0
        assert json.loads((tmp_path / "out/prompts.json").read_text()) == prompts
    assert parameters(tmp_path / "out/prompt00-00.png")[0] == ["a square"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_two_processes_write_the_bytes_of_one(eps_model, v_model, tmp_path, monkeypatch, start):
    """Spawned ones need 20 s for their imports."""
    context = multiprocessing.get_context(start)
    monkeypatch.setattr(images.multiprocessing, "get_context", lambda _: context)
    more = [str(v_model), "--sample_batch_size", "2", "--scheduler", "euler_a", "--resolution", "32"]
    for count in ("1", "2"):
        assert command(eps_model, tmp_path / count, *more, "--nproc_per_node", count) == 0
    found = snapshot(tmp_path / "1")
    assert len([name for name in found if name.endswith("-01.png")]) == 4
    assert found == snapshot(tmp_path / "2")


def test_which_step_was_best(train, tmp_path, capsys):
    """The output folder of a run: a column for each step checkpoint, a row for each prompt."""
    output = train(lora_rank=2, max_train_steps=3, checkpointing_steps=1, learning_rate=0.5)
    (output / "checkpoint/checkpoint-000002/manifest.json").unlink()  # a save that did not finish
    assert command(output, tmp_path / "out", "--resolution", "64") == 0
    folders = ["checkpoint-000001", "checkpoint-000003"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*folders, "grid.png"]
    sheet = Image.open(tmp_path / "out/grid.png")
    assert sheet.size == (2 * 2 * 64 + 8, 16 + 2 * (16 + 64))
    for column, folder in enumerate(folders):
        image = Image.open(tmp_path / "out" / folder / "prompt01-00.png")
        left, top = column * (2 * 64 + 8), 16 + 80 + 16
        assert distance(sheet.crop((left, top, left + 64, top + 64)), image) == 0
    assert f"grid: {tmp_path / 'out/grid.png'}" in capsys.readouterr().out
    capsys.readouterr()
    assert command(output, tmp_path / "lora", "--lora", str(output / "checkpoint")) == 64
    assert "--lora: " in (found := capsys.readouterr().err) and "is of a LoRA too" in found
    scaled = ["--lora_scale", "0", "--resolution", "64"]
    assert command(output, tmp_path / "scaled", *scaled) == 0
    one, other = (Image.open(tmp_path / "scaled" / folder / "prompt00-00.png") for folder in folders)
    assert distance(one, other) == 0


def test_models_of_one_name_have_the_folders_of_their_paths(eps_model, tmp_path):
    other = tmp_path / "copy/model"
    shutil.copytree(eps_model, other)
    words = ["--num_images", "1", "--num_inference_steps", "1"]
    assert command(eps_model, tmp_path / "out", str(other), *words) == 0
    names = [f"{eps_model.parent.name}-model", "copy-model", "grid.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


def test_a_lora_of_another_base(eps_model, xl_model, train, tmp_path, capsys):
    output = train(lora_rank=2, max_train_steps=1)
    lora = output / "checkpoint"
    assert command(xl_model, tmp_path / "out", "--lora", str(lora)) == 66
    found = capsys.readouterr().err
    assert "pytorch_lora_weights.safetensors" in found and "belong to no layer of the model" in found
    assert command(eps_model, tmp_path / "out", "--lora", str(eps_model)) == 66
    assert "does not exist" in capsys.readouterr().err
    weights = eps_model / "unet/diffusion_pytorch_model.safetensors"
    assert command(eps_model, tmp_path / "out", "--lora", str(weights)) == 66
    assert "is not a LoRA" in capsys.readouterr().err
    assert command(lora / "webui/lora.safetensors", tmp_path / "out") == 64
    assert "--base_model: not given, and" in capsys.readouterr().err


def test_everything_that_is_wrong_is_said_at_once(tmp_path, capsys):
    assert generate.main([]) == 64
    found = capsys.readouterr().err
    assert "MODEL: not given" in found and "--output: found nothing" in found
    given = [str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert generate.main(given) == 64
    found = capsys.readouterr().err
    assert "--prompts: not given" in found and "--prompts_file FILE" in found
    (tmp_path / "empty.txt").touch()
    assert generate.main([*given, "--prompts_file", str(tmp_path / "empty.txt")]) == 64
    assert "empty.txt holds no prompt" in capsys.readouterr().err
    assert (
        generate.main([*given, "--prompts", "a", "--scheduler", "eulr", "--width", "33", "--num_images", "0"])
        == 64
    )
    found = capsys.readouterr().err
    for words in (
        "--scheduler: found 'eulr'",
        "Did you mean euler?",
        "--width: found '33'",
        "--num_images: found '0'",
    ):
        assert words in found
    assert not (tmp_path / "out").exists()
    (tmp_path / "checkpoint").mkdir()
    assert generate.main([str(tmp_path), "--prompts", "a", "--output", str(tmp_path / "out")]) == 66
    assert "holds neither a checkpoint nor a result" in capsys.readouterr().err


def test_a_mistake_does_not_wait_for_torch():
    code = "import sys; from sdtrain.generate.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    words = ["/nowhere", "--output", "y", "--lora", "z"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["64", "False"]
    assert "--prompts: not given" in done.stderr and "z: does not exist" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", code, *words[:3]],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "/nowhere: does not exist" in done.stderr and "--prompts: not given" in done.stderr


def test_mistakes_of_the_command(eps_model, tmp_path, capsys):
    assert command(tmp_path, tmp_path / "out") == 66
    assert command(eps_model, tmp_path / "out", "--resolution", "33") == 64
    assert command(eps_model, tmp_path / "out", "--unknown") == 64
    (tmp_path / "file").touch()
    assert command(eps_model, tmp_path / "file") == 73
    (tmp_path / "state.json").touch()
    assert command(tmp_path, tmp_path / "out") == 66
    assert "the save did not finish" in capsys.readouterr().err
    assert generate.main(["--help"]) == 0
    assert "--num_inference_steps" in capsys.readouterr().out
