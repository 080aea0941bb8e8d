"""What is generated from the schema is not stale, and the presets are right."""

import re

import pytest
from dotenv import dotenv_values

from sdjob.spec import RunSpec, settings_of
from sdlaunch import docs, settings
from sdlaunch.options import LaunchOptions
from tests.sdlaunch.place import HOME

PRESETS = sorted((HOME / "env").glob("*.env"))


def test_nothing_is_stale():
    for path, wanted in docs.generated():
        assert path.read_text(encoding="utf-8") == wanted, f"{path.name}: run `make docs`"


def test_every_group_of_settings_has_its_table():
    text = (HOME / "mount_layout.md").read_text(encoding="utf-8")
    groups = {about.group for model in (LaunchOptions, RunSpec) for about in settings_of(model).values()}
    assert set(re.findall(r"<!-- settings: ([\w ]+) -->", text)) == groups
    for model in (LaunchOptions, RunSpec):
        for field, about in settings_of(model).items():
            assert about.flag_only or f"| `{about.name or field}` |" in text


def test_a_table_follows_the_schema():
    text = docs.with_tables("a\n<!-- settings: logging -->\nold\n<!-- end -->\nb\n")
    assert "old" not in text
    assert "| `logging_steps` | scalars every so many steps; 1: every step (optimiser steps) | `10` |" in text


def test_comments_follow_the_schema():
    text = docs.with_comments("# head\n# more\n\n# old\nlr=1\n# old\n# old\nNCCL_DEBUG=INFO\n")
    assert text == (
        "# head\n# more\n\n# learning rate after warm-up, not scaled by anything [5e-06]\nlr=1\n\n"
        "# passed on to the workers\nNCCL_DEBUG=INFO\n"
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_preset_is_understood_and_means_the_same_to_docker_and_dotenv(preset):
    found = settings.read([("env_file", str(preset))], {})
    assert (found.problems, found.warnings, found.passed_on) == ((), (), {})
    lines = [line for line in preset.read_text().splitlines() if line and not line.startswith("#")]
    assert dict(line.split("=", 1) for line in lines) == dotenv_values(preset)


def test_there_are_presets():
    assert {path.stem for path in PRESETS} >= {
        "demo",
        "dreambooth_teyvat",
        "dreambooth_prior",
        "text_to_image_pokemon",
        "text_to_image_lora",
    }
