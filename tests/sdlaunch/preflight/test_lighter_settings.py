"""Tests of the settings that are recommended where memory is short."""

from sdjob.model import memory_estimate
from sdjob.settings import compatibility
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight import lighter_settings
from tests.sdjob.model.test_memory_estimate import GB, GPU, sd14, spec

__all__ = ["sd14"]


def test_the_settings_that_would_fit_are_checked_with_the_same_sums(sd14):
    job = spec(train_batch_size=16, gradient_accumulation_steps=2, use_ema=True)
    assert lighter_settings.fitting(job, sd14, GPU, 80 * GB)[0] == "gradient_checkpointing=1"
    found = lighter_settings.fitting(job, sd14, GPU, 25 * GB)
    assert found == [
        "batch_size=2 gradient_accumulation_steps=16",
        "lora_rank=16",
    ]
    for text in found:
        change = dict(word.split("=") for word in text.split())
        renamed = {"batch_size": "train_batch_size"}
        other = RunSpec.model_validate(
            {**job.model_dump(), **{renamed.get(name, name): value for name, value in change.items()}}
        )
        assert memory_estimate.estimate(other, sd14, GPU).total <= 0.9 * 25 * GB
        assert compatibility.problems(other, GPU) == []


def test_where_only_a_lora_fits_only_that_is_said(sd14):
    assert lighter_settings.fitting(spec(), sd14, GPU, 8 * GB) == ["lora_rank=16"]
    assert lighter_settings.fitting(spec(), sd14, GPU, GB) == []


def test_half_precision_is_recommended_for_a_run_in_fp32_only(sd14):
    assert "mixed_precision=bf16" in lighter_settings.fitting(spec(mixed_precision="no"), sd14, GPU, 80 * GB)
    assert "mixed_precision=bf16" not in lighter_settings.fitting(spec(), sd14, GPU, 80 * GB)
