"""Tests of advice: settings that are allowed but probably not intended."""

from dataclasses import replace

import pytest

from sdjob.settings.advice import high_rates, without_effect
from sdjob.settings.optimizers import OPTIMIZERS
from tests.support.specs import spec


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"class_prompt": "a dog", "num_class_images": 7},
            "class_prompt, num_class_images: no effect without",
        ),
        ({"lora_alpha": 4.0}, "lora_alpha: no effect without lora_rank"),
        ({"ema_decay": 0.5}, "ema_decay: no effect without use_ema=1"),
        ({"bucket_reso_steps": 8}, "bucket_reso_steps: no effect without aspect_ratio_buckets=1"),
        (
            {"concepts_list": "x", "class_prompt": "y", "with_prior_preservation": True},
            "class_prompt: no effect without leaving concepts_list",
        ),
        ({"lr_num_cycles": 3}, "lr_num_cycles: no effect without lr_scheduler=cosine_with_restarts"),
        ({"lr_power": 2.0}, "lr_power: no effect without lr_scheduler=polynomial"),
        (
            {"optimizer": "adafactor", "adam_beta1": 0.5},
            "adam_beta1: no effect without one of the optimizers adamw, adamw8bit",
        ),
        (
            {"optimizer": "adafactor", "adam_epsilon": 1e-7},
            "adam_epsilon: no effect without one of the optimizers adamw, adamw8bit",
        ),
        ({"text_encoder_lr": 1e-6}, "text_encoder_lr: no effect without train_text_encoder=1"),
        (
            {"validation_steps": 5},
            "validation_steps: no effect without validation_prompts, validation_data_dir or validation_split",
        ),
        (
            {"num_train_epochs": 3, "max_train_steps": 100},
            "epoch: no effect alongside num_train_step, which wins",
        ),
        ({"recipe": "text_to_image", "instance_prompt": "x"}, "instance_prompt: no effect without recipe"),
        ({"max_bad_samples": 3}, "max_bad_samples: no effect without bad_samples=skip"),
        ({"max_nan_steps": 3}, "max_nan_steps: no effect without on_nan=skip"),
        ({"export_single_file": True, "lora_rank": 4}, "export_single_file: no effect without lora_rank=0"),
        ({"num_validation_images": 3}, "num_validation_images: no effect without validation_prompts"),
        (
            {"max_validation_samples": 3},
            "max_validation_samples: no effect without validation_data_dir or validation_split",
        ),
        ({"reference_loss": 0.1}, "reference_loss: no effect without timed_step"),
        ({"caption_column": "caption"}, "caption_column: no effect without recipe=text_to_image"),
        (
            {"guidance_scale": 5.0, "sample_batch_size": 2},
            "guidance_scale, sample_batch_size: no effect without validation_prompts, or class images to generate",
        ),
        (
            {"with_prior_preservation": True, "class_data_dir": "c", "num_inference_steps": 9},
            "num_inference_steps: no effect without validation_prompts, or class images",
        ),
    ],
)
def test_settings_that_do_nothing_are_named(values, named):
    (sentence,) = without_effect(spec(**values))
    assert sentence.startswith(named)


def test_settings_that_do_something_are_not():
    used = {"with_prior_preservation": True, "class_prompt": "a dog", "use_ema": True, "ema_decay": 0.5}
    assert without_effect(spec(**used, lora_rank=2, lora_alpha=4.0)) == []
    assert without_effect(spec()) == []
    for values in (
        {"validation_steps": 5, "validation_prompts": ("a",), "num_validation_images": 3},
        {"validation_steps": 5, "validation_split": 0.1, "max_validation_samples": 3},
        {"validation_steps": 5, "validation_data_dir": "x", "max_validation_samples": 3},
        {"export_single_file": True, "aspect_ratio_buckets": True, "bucket_reso_steps": 8},
        {"bad_samples": "skip", "max_bad_samples": 3, "on_nan": "skip", "max_nan_steps": 3},
        {"lr_scheduler": "polynomial", "lr_power": 2.0, "adam_beta1": 0.5},
        {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 3},
        {"train_text_encoder": True, "text_encoder_lr": 1e-6},
        {"timed_step": 5, "reference_loss": 0.1},
        {"recipe": "text_to_image", "caption_column": "caption"},
        {"validation_prompts": ("a",), "guidance_scale": 5.0},
        {"with_prior_preservation": True, "num_inference_steps": 9},
    ):
        assert without_effect(spec(**values)) == [], values
    assert without_effect(spec(num_train_epochs=3)) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"learning_rate": 5e-3}, ["lr: 0.005 is very high for a full fine-tune"]),
        ({"learning_rate": 1e-3}, []),
        ({"learning_rate": 1.1e-3}, ["lr: 0.0011 is very high for a full fine-tune"]),
        ({"learning_rate": 1e-2, "lora_rank": 4}, []),
        ({"learning_rate": 1.1e-2, "lora_rank": 4}, ["lr: 0.011 is very high for a LoRA"]),
        ({"learning_rate": 5e-3, "lora_rank": 4}, []),
        ({"learning_rate": 5e-2, "lora_rank": 4}, ["lr: 0.05 is very high for a LoRA"]),
        ({"text_encoder_lr": 5e-3, "train_text_encoder": True}, ["text_encoder_lr: 0.005 is very high"]),
        ({"learning_rate": 1.0, "optimizer": "prodigy"}, []),
        ({"learning_rate": 1e-2, "optimizer": "adafactor"}, []),
        ({"learning_rate": 1e-2, "optimizer": "adamw8bit"}, ["lr: 0.01 is very high"]),
    ],
)
def test_rates_that_destroy_are_named(values, named):
    found = high_rates(spec(**values))
    assert len(found) == len(named)
    assert all(sentence.startswith(start) for sentence, start in zip(found, named, strict=True))


def test_an_optimizer_may_take_betas_without_epsilon_at_rates_of_its_own(monkeypatch):
    lion = replace(OPTIMIZERS["adamw"], uses_epsilon=False, adamw_rates=False)
    monkeypatch.setitem(OPTIMIZERS, "adamw", lion)
    assert without_effect(spec(adam_beta1=0.5, adam_epsilon=1e-7)) == [
        "adam_epsilon: no effect without one of the optimizers adamw8bit, prodigy"
    ]
    assert high_rates(spec(learning_rate=1e-2)) == []
