"""Tests of the facts of parallel strategies and device types."""

import importlib
from typing import get_args

import pytest

from sdjob.settings import choices, plugins
from sdjob.settings.optimizers import OPTIMIZERS, OptimizerFacts
from sdjob.settings.plugins import DEVICE_FACTS, PLUGINS, optimizers_of, plugins_with
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


@pytest.mark.parametrize(
    ("adam_state", "having"), [(True, {"torch_ddp", "fsdp", "low_level_zero"}), (False, {"torch_ddp"})]
)
def test_a_new_optimizer_is_trained_with_where_its_state_is_known(monkeypatch, adam_state, having):
    """Gemini has an AdamW of its own, whatever a row says."""
    row = OptimizerFacts("new", 8, adam_state=adam_state)
    monkeypatch.setattr(plugins, "OPTIMIZERS", {**OPTIMIZERS, "new": row})
    names = ("torch_ddp", "fsdp", "low_level_zero", "gemini")
    assert {name for name in names if "new" in optimizers_of(name)} == having
    assert all("adamw" in optimizers_of(name) for name in PLUGINS)
