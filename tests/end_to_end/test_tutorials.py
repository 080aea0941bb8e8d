"""Each tutorial: its original command through `convert`, `plan` and a short run, on data of the same layout."""

import json
import math
import re
import shutil

import pytest
from dotenv import dotenv_values
from PIL import Image

from sdjob.settings import flags as worker_flags
from sdlaunch import plan
from sdlaunch.convert import env_file
from sdlaunch.documents import tables
from sdlaunch.settings import settings
from sdtrain.__main__ import main
from tests.sdlaunch.workspace import HOME, clean_environment
from tests.support.datasets import make_parquet

# What a CPU and a test allow; everything else is the tutorial's.
SHORT = {
    "device": "cpu",
    "NPROC_PER_NODE": "1",
    "launcher": "torchrun",
    "mixed_precision": "no",
    "resolution": "32",
    "batch_size": "1",
    "gradient_accumulation_steps": "1",
    "num_train_step": "2",
    "num_class_images": "2",
    "num_inference_steps": "1",
    "num_validation_images": "1",
    "logging_steps": "1",
    "dataloader_num_workers": "0",
    "offline": "1",
    "report_to": "tensorboard",  # one command reports to a package that is not installed here
}
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def mounts(tmp_path_factory, eps_model, v_model):
    """Models and datasets at the names that the commands use, so that nothing is looked for on the hub."""
    root = tmp_path_factory.mktemp("tutorials")
    shutil.copytree(eps_model, root / "model/CompVis/stable-diffusion-v1-4")
    shutil.copytree(v_model, root / "model/pokemon/stable_diffusion_2_1")
    for name in ("lambdalabs/pokemon-blip-captions", "pokemon/pokemon_blip_captions", "Teyvat"):
        make_parquet(root / "dataset" / name)
    return root


@pytest.mark.parametrize(
    ("tutorial", "more", "expected"),
    [
        ("dreambooth-teyvat", {}, {"recipe": "dreambooth", "learning_rate": 5e-6, "plugin": "torch_ddp"}),
        ("dreambooth-prior", {}, {"with_prior_preservation": True, "prior_loss_weight": 1.0}),
        ("text-to-image", {}, {"use_ema": True, "gradient_checkpointing": True, "random_flip": True}),
        ("text-to-image-lora", {}, {"lora_rank": 4, "lr_scheduler": "cosine", "seed": 1337}),
        ("lora-768-gcu", {}, {"lora_rank": 4, "learning_rate": 0.00024, "attention": "sdpa"}),
        (
            "benchmark",
            {"timed_step": "2", "reference_loss": "0.0456", "skip_steps": "0"},
            {"use_ema": True, "gradient_checkpointing": False, "reference_loss": 0.0456},
        ),
    ],
)
def test_a_tutorial_trains(tutorial, more, expected, mounts, tmp_path):
    (tmp_path / "job.env").write_text(env_file.render(tutorial, tables.converted(tutorial)))
    folders = {
        "MODEL_DIR": str(mounts / "model"),
        "DATASET_DIR": str(mounts / "dataset" / ("Teyvat" if tutorial.startswith("dreambooth") else "")),
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    if tutorial == "dreambooth-prior":
        folders["class_data_dir"] = str(mounts / "class")
        make_class_images(mounts / "class")
    environ = clean_environment(**folders, **SHORT, **more, ENV_FILE=str(tmp_path / "job.env"))
    job = plan.prepare((), environ, HOME)
    assert job.problems == () and job.launch is not None
    words = list(job.launch.argv)
    flags = words[words.index("sdtrain") + 1 :]
    spec = worker_flags.parse(flags)
    assert {name: getattr(spec, name) for name in expected} == expected
    assert main(flags) == 0

    report = json.loads((tmp_path / "output/report.json").read_text())
    logged = map(json.loads, (tmp_path / "output/run/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in logged if "loss" in line]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert (tmp_path / "output/checkpoint" / LORA).exists() == bool(expected.get("lora_rank"))
    if tutorial == "benchmark":
        timed = report["timed_step"]
        assert (timed["step"], timed["reference_loss"]) == (2, 0.0456) and timed["seconds"] > 0
        assert report["images_per_second_per_device"] > 0
    if tutorial == "lora-768-gcu":  # the fields of the vendor's report
        page = (HOME / "docs/tutorials/lora-768-gcu.md").read_text()
        theirs = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])
        assert theirs.keys() <= report.keys()


def make_class_images(folder):
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        Image.new("RGB", (32, 32), "blue").save(folder / f"{name}.png")


# What presets leave to the machine or name as the mounts do.
LEFT_OPEN = {
    "MODEL_NAME",
    "model_name",
    "dataset_name",
    "DATASET_DIR",
    "offline",
    "mixed_precision",
    "NPROC_PER_NODE",
    "report_to",
}

RECOMMENDED = {
    "adam_weight_decay",
    "image_interpolation_mode",
}  # the script's defaults, which the presets do not take


@pytest.mark.parametrize(
    ("preset", "tutorial", "more"),
    [
        ("dreambooth_teyvat", "dreambooth-teyvat", RECOMMENDED),
        ("dreambooth_prior", "dreambooth-prior", {"class_data_dir", *RECOMMENDED}),
        ("text_to_image_pokemon", "text-to-image", set()),
        ("text_to_image_pokemon_gemini", "text-to-image", {"plugin"}),
        ("text_to_image_lora", "text-to-image-lora", {"dataloader_num_workers"}),
        ("text_to_image_lora_768_gcu", "lora-768-gcu", {"checkpointing_steps", "NNODES"}),
        ("text_to_image_benchmark", "benchmark", {"timed_step", "reference_loss", "logging_steps", "NNODES"}),
    ],
)
def test_the_preset_of_a_tutorial_is_what_convert_makes_of_the_original(preset, tutorial, more):
    converted = [(line.name, line.value) for line in tables.converted(tutorial) if line.name]
    ours = settings.read([*dotenv_values(HOME / "env" / f"{preset}.env").items()], {})
    theirs = settings.read(converted, {})
    assert theirs.problems == ()
    both = {*ours.given, *theirs.given} - LEFT_OPEN - more - {"checkpoints_total_limit", "placement"}
    values = [{name: value(read, name) for name in sorted(both)} for read in (ours, theirs)]
    assert values[0] == values[1]


def value(read, name):
    """The value of a setting by the name that the plan shows."""
    shown = {
        settings.shown_names(type(model))[field]: (model, field)
        for model in (read.spec, read.options)
        for field in type(model).model_fields
    }
    model, field = shown[name]
    return getattr(model, field)
