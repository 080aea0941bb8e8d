"""Tests of the facts of optimizers."""

from typing import get_args

import pytest

from sdjob.settings import choices
from sdjob.settings.optimizers import HELP, OPTIMIZERS
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import settings
from sdtrain.optim import optimizers


def test_settings_facts_and_worker_know_the_same_optimizers():
    assert set(OPTIMIZERS) == set(get_args(choices.Optimizer)) == set(optimizers.BUILDERS)
    assert RunSpec.model_fields["optimizer"].default in OPTIMIZERS


@pytest.mark.parametrize(
    ("name", "package", "state_bytes", "learning_rate"),
    [
        ("adamw", "", 8, None),  # two moments in fp32
        ("adamw8bit", "bitsandbytes", 2, None),  # two moments of one byte
        ("adafactor", "", 0, None),
        ("prodigy", "prodigyopt", 16, 1.0),  # two moments, the start and a sum of gradients
    ],
)
def test_facts(name, package, state_bytes, learning_rate):
    facts = OPTIMIZERS[name]
    assert (facts.package, facts.state_bytes, facts.learning_rate) == (package, state_bytes, learning_rate)


def test_the_help_names_all():
    assert [each.partition(" (")[0] for each in HELP.split("; ")] == list(OPTIMIZERS)
    assert "adamw8bit (bitsandbytes, less memory)" in HELP


def test_other_spellings_are_read():
    for spelling in ("adamw_8bit", "8BIT", "adam8bit"):
        assert settings.read([("optimizer", spelling)], {}).spec.optimizer == "adamw8bit"
