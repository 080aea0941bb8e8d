"""Tests of run_spec, fields and choices: every setting is described, every name means one thing."""

import os
from collections import Counter

import pytest
from pydantic import ValidationError

from sdjob.problems import JobError
from sdjob.settings.fields import Alias, Setting, settings_of
from sdjob.settings.flags import parse, render, validate
from sdjob.settings.run_spec import RunSpec

PATHS = {"pretrained_model_name_or_path": "/m", "output_dir": "/o"}


def test_every_field_has_its_setting():
    for name, about in settings_of(RunSpec).items():
        assert about.help and about.group, name
        assert not about.help.endswith("."), name


def test_no_name_means_two_settings():
    names = Counter(
        spelling.name for field, about in settings_of(RunSpec).items() for spelling in about.spellings(field)
    )
    assert [name for name, count in names.items() if count > 1] == []
    assert all(name == name.lower() for name in names)


def test_the_name_that_users_type_comes_first():
    about = Setting("g", "h", name="lr", aliases=("rate", Alias("speed", {"fast": "1"})))
    assert [spelling.name for spelling in about.spellings("learning_rate")] == [
        "lr",
        "learning_rate",
        "rate",
        "speed",
    ]


def test_alias_values_are_translated_and_others_kept():
    alias = Alias("precision", {"16": "fp16"})
    assert (alias.translate(" 16 "), alias.translate("bf16")) == ("fp16", "bf16")


def test_a_spec_is_frozen_and_closed():
    spec = RunSpec(**PATHS)
    with pytest.raises(ValidationError):
        spec.seed = 1
    with pytest.raises(ValidationError):
        RunSpec(**PATHS, no_such_setting=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolution": 500},
        {"resolution": 0},
        {"train_batch_size": 0},
        {"max_train_steps": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": 2},
        {"lora_rank": -1},
        {"ema_decay": 1},
        {"seed": -1},
        {"plugin": "ddp"},
        {"instance_prompt": ""},
        {"device": "cuda:0"},
        {"validation_prompts": "[1"},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        RunSpec(**PATHS, **wrong)


def test_lists_from_one_string():
    spec = RunSpec(**PATHS, validation_prompts='["a, b", "c"]', lora_target_modules="to_k, to_q,")
    assert spec.validation_prompts == ("a, b", "c")
    assert spec.lora_target_modules == ("to_k", "to_q")
    assert RunSpec(**PATHS, validation_prompts="a, b").validation_prompts == ("a, b",)


def test_the_dataset_of_the_recipe():
    spec = RunSpec(**PATHS, instance_data_dir="/i", train_data_dir="/t")
    assert spec.data_dir == "/i"
    assert spec.model_copy(update={"recipe": "text_to_image"}).data_dir == "/t"


def test_the_scale_of_a_lora():
    assert RunSpec(**PATHS, lora_rank=4).lora_scale_alpha == 4
    assert RunSpec(**PATHS, lora_rank=4, lora_alpha=2).lora_scale_alpha == 2


def test_a_path_of_data_may_hold_bytes_that_are_not_utf8():
    folder = os.fsdecode(b"/mnt/\xd5\xd5")
    spec = RunSpec(**PATHS, concepts_list=folder, instance_data_dir=folder)
    assert spec.instance_data_dir == spec.concepts_list == folder
    with pytest.raises(ValidationError, match="at least 1 character"):
        RunSpec(**PATHS, concepts_list="")
    with pytest.raises(ValidationError):
        RunSpec(**PATHS, instance_prompt=folder)


@pytest.mark.parametrize(
    ("given", "attention"),
    [
        ("auto", "auto"),
        ("XFormers", "xformers"),
        ("flash", "flash"),
        (" cudnn, flash ,math", "cudnn,flash,math"),
        ("fa4,cudnn,flash,efficient,math", "fa4,cudnn,flash,efficient,math"),
    ],
)
def test_attention_is_one_backend_or_several_by_priority(given, attention):
    spec = RunSpec(**PATHS, attention=given)
    assert spec.attention == attention
    assert parse(render(spec)) == parse([*render(RunSpec(**PATHS)), f"--attention={given}"])


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (
            "flash,xformers",
            "Write one of auto, sdpa, xformers, or one or more of cudnn, flash, efficient, math",
        ),
        ("auto,math", "Write one of auto"),
        ("flash,math,flash", "each once"),
        ("flash,mat", "Did you mean math? Write one of auto"),
        ("xformer", "Did you mean xformers? Write one of auto"),
        ("{turbo}", "Write one of auto"),
        (",", "Write one of auto"),
    ],
)
def test_other_lists_of_attention_are_refused(given, remedy):
    with pytest.raises(JobError) as error:
        validate({**PATHS, "attention": given})
    (problem,) = error.value.problems
    assert (problem.code, problem.subject, problem.found) == (64, "attention", f"found {given!r}")
    assert remedy in problem.remedy
