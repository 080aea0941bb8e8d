"""Tests of presets: they apply where no source sets a value, and nowhere else."""

import pytest

from sdjob.settings import flags, presets
from sdjob.settings.run_spec import RunSpec

PATHS = {"pretrained_model_name_or_path": "/m", "output_dir": "/o"}
LORA, PRODIGY, CAPTIONED = "lora_rank above 0", "optimizer=prodigy", "recipe=text_to_image"


@pytest.mark.parametrize(
    ("given", "rate", "why"),
    [
        ({}, 5e-6, None),
        ({"recipe": "text_to_image"}, 1e-5, CAPTIONED),
        ({"lora_rank": 4}, 1e-4, LORA),
        ({"lora_rank": 1}, 1e-4, LORA),
        ({"lora_rank": 4, "recipe": "text_to_image"}, 1e-4, LORA),
        ({"lora_rank": 4, "optimizer": "prodigy"}, 1.0, PRODIGY),
        ({"lora_rank": 4, "learning_rate": 3e-4}, 3e-4, None),
        ({"lora_rank": 4, "learning_rate": 5e-6}, 5e-6, None),  # the plain default, but set
        ({"optimizer": "prodigy", "learning_rate": 0.5}, 0.5, None),
    ],
)
def test_the_rate(given, rate, why):
    spec, chosen = presets.completed(RunSpec(**PATHS, **given))
    assert (spec.learning_rate, chosen) == (rate, {"learning_rate": why} if why else {})


def test_the_worker_takes_them_too_and_hands_them_on():
    argv = ["--pretrained_model_name_or_path=/m", "--output_dir=/o", "--lora_rank=4"]
    spec = flags.parse(argv)
    assert spec.learning_rate == 1e-4
    assert "--learning_rate=0.0001" in flags.render(spec)
    assert flags.parse([*argv, "--learning_rate=5e-6"]).learning_rate == 5e-6
