"""Tests of generate_docs, documents/tables, documents/translations and settings/other_trainers: nothing is stale."""

import re

import pytest
from dotenv import dotenv_values

from sdjob.settings.fields import settings_of
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdlaunch import generate_docs, plan
from sdlaunch.documents import tables, translations
from sdlaunch.settings import names, other_trainers, settings
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.verbs import help as settings_help
from tests.sdlaunch.workspace import HOME, clean_environment

PRESETS = sorted((HOME / "env").glob("*.env"))


def test_nothing_is_stale():
    for path, wanted in generate_docs.generated():
        assert path.read_text(encoding="utf-8") == wanted, f"{path.name}: run `make docs`"


def test_every_group_of_settings_has_its_table():
    text = (HOME / "mount_layout.md").read_text(encoding="utf-8")
    groups = {about.group for model in (LaunchOptions, RunSpec) for about in settings_of(model).values()}
    assert set(re.findall(r"<!-- settings: ([\w ]+) -->", text)) == groups
    for model in (LaunchOptions, RunSpec):
        for field, about in settings_of(model).items():
            assert about.flag_only or f"| `{about.name or field}` |" in text


def test_a_table_follows_the_schema():
    text = generate_docs.with_tables("a\n<!-- settings: logging -->\nold\n<!-- end -->\nb\n")
    assert "old" not in text
    assert "| `logging_steps` | scalars every so many steps; 1: every step (optimizer steps) | `10` |" in text


def test_the_names_of_other_trainers_are_listed_in_both_languages_and_lead_to_settings():
    for name in ("coming-from.md", "coming-from.zh-CN.md"):
        text = (HOME / "docs" / name).read_text(encoding="utf-8")
        assert "| `lora_rank` | `network_dim` |\n" in text
    for theirs, ours in other_trainers.probably().items():
        assert names.lookup(theirs) is None  # else it would be read
        assert names.lookup(ours).shown == ours  # type: ignore[union-attr]


def test_comments_follow_the_schema():
    text = settings_help.with_comments("# head\n# more\n\n# old\nlr=1\n# old\n# old\nNCCL_DEBUG=INFO\n")
    assert text == (
        "# head\n# more\n\n# learning rate after warm-up, not scaled by batch size or processes "
        "[5e-06; 1 with optimizer=prodigy; 0.0001 with lora_rank above 0; 1e-05 with recipe=text_to_image]\nlr=1\n\n"
        "# passed on to the workers\nNCCL_DEBUG=INFO\n"
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_preset_is_understood_and_means_the_same_to_docker_and_dotenv(preset):
    found = settings.read([("env_file", str(preset))], {})
    assert (found.problems, found.warnings, found.passed_on) == ((), (), {})
    lines = [line for line in preset.read_text().splitlines() if line and not line.startswith("#")]
    assert dict(line.split("=", 1) for line in lines) == dotenv_values(preset)


def test_there_are_presets():
    expected = (
        "demo dreambooth_teyvat dreambooth_prior text_to_image_pokemon text_to_image_pokemon_gemini "
        "text_to_image_benchmark text_to_image_lora text_to_image_lora_768 text_to_image_lora_768_gcu "
        "text_to_image_xl_lora dreambooth_lora"
    )
    assert {path.stem for path in PRESETS} >= {*expected.split()}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_with_a_preset_only_the_mounts_are_missing(preset, tmp_path):
    mounts = {
        "MODEL_DIR": "/nonexistent/m",
        "DATASET_DIR": "/nonexistent/d",
        "OUTPUT_DIR": str(tmp_path / "o"),
    }
    device = {} if "\ndevice=" in preset.read_text() else {"device": "cpu"}
    environ = clean_environment(**mounts, ENV_FILE=str(preset), **device)
    job = plan.prepare((), environ, HOME)
    on_cpu = "cpu" in PLUGINS[job.settings["plugin"].value].devices
    unavailable = [] if on_cpu else [("plugin", 69)]
    found = [(problem.subject, problem.code) for problem in job.problems]
    assert found == [("DATASET_DIR", 66), ("MODEL_DIR", 66), *unavailable]
    assert job.launch is not None


TUTORIAL = {  # examples/text_to_image of diffusers
    "resolution": 512,
    "center_crop": True,
    "random_flip": True,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "max_grad_norm": 1.0,
    "lr_warmup_steps": 0,
}
FULL = {"use_ema": True, "gradient_checkpointing": True, "learning_rate": 1e-5, "lr_scheduler": "constant"}
LORA = {"lora_rank": 4, "learning_rate": 1e-4, "lr_scheduler": "cosine", "seed": 1337}
DREAMBOOTH = {"resolution": 512, "train_batch_size": 1, "learning_rate": 5e-6, "lr_scheduler": "constant"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dreambooth_teyvat", {**DREAMBOOTH, "max_train_steps": 400}),
        (
            "dreambooth_prior",
            {**DREAMBOOTH, "max_train_steps": 800, "num_class_images": 200, "prior_loss_weight": 1.0},
        ),
        ("text_to_image_pokemon", {**TUTORIAL, **FULL, "max_train_steps": 15000}),
        (
            "text_to_image_pokemon_gemini",
            {**TUTORIAL, **FULL, "max_train_steps": 15000, "plugin": "gemini", "placement": "cuda"},
        ),
        (
            "text_to_image_benchmark",
            {
                **TUTORIAL,
                **FULL,
                "max_train_steps": 101,
                "train_batch_size": 8,
                "gradient_checkpointing": False,
            },
        ),
        ("text_to_image_lora", {**TUTORIAL, **LORA, "max_train_steps": 15000}),
        ("text_to_image_lora_768", {**TUTORIAL, **LORA, "max_train_steps": 15000, "resolution": 768}),
    ],
)
def test_presets_have_the_values_of_the_tutorials(name, values):
    spec = settings.read([("env_file", str(HOME / "env" / f"{name}.env"))], {}).spec
    assert {field: getattr(spec, field) for field in values} == values


def test_a_table_in_chinese_falls_back_to_english(monkeypatch):
    english = "scalars every so many steps; 1: every step (optimizer steps)"
    monkeypatch.setattr(translations, "chinese", lambda: {"name": "名称", english: "每隔多少步"})
    text = generate_docs.with_tables("<!-- settings zh: logging -->\n<!-- end -->\n")
    assert "| 名称 | meaning |" in text and "| `logging_steps` | 每隔多少步 |" in text
    assert "| `skip_steps` | first steps" in text


def test_flags_of_a_tutorial_stand_next_to_what_they_become():
    text = tables.flags("", "lora-768-gcu")
    assert "| `--train_batch_size=4` | `batch_size=4` |\n" in text
    assert "| `--multi_gcu` | `device=gcu`<br>`launcher=accelerate`<br>" in text
    assert "| default of `train_text_to_image_lora.py` | `lora_rank=4` |\n" in text
