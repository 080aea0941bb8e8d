"""Which settings work together, and where."""

import pytest

from sdjob.compat import Topology, problems, resolve_precision
from sdjob.spec import RunSpec

CPU, OLD_GPU, GPU = Topology("cpu", 1), Topology("cuda", 8, bf16=False), Topology("cuda", 8, bf16=True)


def spec(**values):
    return RunSpec(pretrained_model_name_or_path="/m", output_dir="/o", **values)


@pytest.mark.parametrize(
    ("values", "topology", "precision"),
    [
        ({}, CPU, "no"),
        ({}, GPU, "bf16"),
        ({}, OLD_GPU, "no"),
        ({}, Topology("cuda", 1), "auto"),
        ({"plugin": "gemini"}, GPU, "bf16"),
        ({"plugin": "gemini"}, OLD_GPU, "fp16"),
        ({"plugin": "low_level_zero"}, OLD_GPU, "fp16"),
        ({"plugin": "torch_ddp_fp16"}, GPU, "fp16"),
        ({"mixed_precision": "bf16"}, CPU, "bf16"),
        ({"mixed_precision": "no"}, GPU, "no"),
    ],
)
def test_precision(values, topology, precision):
    assert resolve_precision(spec(**values), topology) == precision


@pytest.mark.parametrize("topology", [CPU, GPU, OLD_GPU])
@pytest.mark.parametrize("recipe", ["dreambooth", "text_to_image"])
def test_the_defaults_work_everywhere(recipe, topology):
    assert problems(spec(recipe=recipe), topology) == []


@pytest.mark.parametrize(
    ("values", "topology", "subject", "code"),
    [
        ({"plugin": "fsdp"}, GPU, "plugin", 69),
        ({"plugin": "none"}, GPU, "plugin", 64),
        ({"placement": "cpu"}, GPU, "placement", 64),
        ({"attention": "xformers"}, CPU, "attention", 64),
        ({"plugin": "torch_ddp_fp16"}, CPU, "mixed_precision", 64),
        ({"plugin": "torch_ddp_fp16", "mixed_precision": "bf16"}, GPU, "mixed_precision", 64),
        ({"mixed_precision": "fp16"}, CPU, "mixed_precision", 64),
        ({"mixed_precision": "bf16"}, OLD_GPU, "mixed_precision", 64),
        (
            {"recipe": "text_to_image", "with_prior_preservation": True, "class_prompt": "a dog"},
            GPU,
            "with_prior_preservation",
            64,
        ),
        ({"with_prior_preservation": True}, GPU, "class_prompt", 64),
        (
            {"lr_warmup_steps": 400, "lr_scheduler": "cosine"},
            GPU,
            "lr_warmup_steps",
            64,
        ),
        ({"lr_warmup_steps": 10}, GPU, "lr_warmup_steps", 64),
    ],
)
def test_what_does_not_work_is_one_problem(values, topology, subject, code):
    (problem,) = problems(spec(**values), topology)
    assert (problem.subject, problem.code) == (subject, code)
    assert problem.remedy.endswith(".")


def test_one_process_needs_no_strategy():
    assert problems(spec(plugin="none"), CPU) == []
