"""Tests of the facts of parallel strategies and device types."""

import importlib
from typing import get_args

import pytest

from sdjob.settings import choices
from sdjob.settings.plugins import DEVICE_FACTS, PLUGINS, plugins_with
from sdjob.settings.run_spec import RunSpec


def test_settings_and_facts_know_the_same_plugins_and_devices():
    assert set(PLUGINS) == set(get_args(choices.Plugin))
    assert {"auto", *DEVICE_FACTS} == set(get_args(choices.Device)) == set(choices.DEVICES)


@pytest.mark.parametrize(
    ("name", "shards", "elsewhere", "precisions", "package"),
    [
        ("none", False, True, {"no", "bf16", "fp16"}, ""),
        ("torch_ddp", False, True, {"no", "bf16", "fp16"}, ""),
        ("torch_ddp_fp16", False, True, {"fp16"}, ""),
        ("fsdp", True, True, {"no", "bf16", "fp16"}, ""),
        ("low_level_zero", True, False, {"no", "bf16", "fp16"}, "colossalai"),
        ("gemini", True, False, {"bf16", "fp16"}, "colossalai"),
    ],
)
def test_facts(name, shards, elsewhere, precisions, package):
    facts = PLUGINS[name]
    assert (facts.shards, "cpu" in facts.devices, set(facts.precisions), facts.package) == (
        shards,
        elsewhere,
        precisions,
        package,
    )
    assert {"cuda", "npu"} <= set(facts.devices) <= set(DEVICE_FACTS)
    assert importlib.util.find_spec(f"sdtrain.strategies.{facts.module}")


def test_the_settings_of_plugins_are_settings():
    assert plugins_with("cpu_offload") == ["fsdp", "low_level_zero"]
    assert plugins_with("resolution") == []
    assert {name for facts in PLUGINS.values() for name in facts.settings} <= RunSpec.model_fields.keys()
