"""Tests of compatibility: which settings work together, and where."""

import pytest

from sdjob.settings.compatibility import Topology, problems, resolve_precision, width
from tests.support.specs import spec

CPU, OLD_GPU, GPU = Topology("cpu", 1), Topology("cuda", 8, bf16=False), Topology("cuda", 8, bf16=True)


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
        ({"plugin": "low_level_zero"}, Topology("npu", 8, bf16=False, fp16=False), "no"),
        ({}, Topology("mps", 1, bf16=True, fp16=True), "no"),
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
        ({"plugin": "gemini"}, CPU, "plugin", 69),
        ({"plugin": "low_level_zero"}, CPU, "plugin", 69),
        ({"plugin": "fsdp"}, Topology("mps", 1), "plugin", 69),
        ({"plugin": "gemini", "placement": "auto"}, Topology("npu", 8, bf16=True), "placement", 64),
        ({"plugin": "gemini", "mixed_precision": "no"}, GPU, "mixed_precision", 64),
        ({"plugin": "gemini", "zero_stage": 2}, GPU, "zero_stage", 64),
        ({"plugin": "gemini", "cpu_offload": True}, GPU, "cpu_offload", 64),
        ({"reshard_after_forward": False}, GPU, "reshard_after_forward", 64),
        ({"plugin": "fsdp", "placement": "auto"}, GPU, "placement", 64),
        ({"plugin": "fsdp", "mixed_precision": "fp16"}, CPU, "mixed_precision", 64),
        ({"mixed_precision": "bf16"}, Topology("mps", 1, bf16=False), "mixed_precision", 64),
        ({"mixed_precision": "fp16"}, Topology("mlu", 8, fp16=False), "mixed_precision", 64),
        ({"plugin": "torch_ddp_fp16"}, Topology("mlu", 8, fp16=False), "mixed_precision", 64),
        ({}, Topology("mps", 2), "NPROC_PER_NODE", 69),
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
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-7}, GPU, "lr_scheduler", 64),
        ({"attention": "cudnn"}, CPU, "attention", 64),
        ({"attention": "fa4,cudnn"}, CPU, "attention", 64),
        ({"cache_latents": "disk"}, GPU, "cache_latents", 64),
        ({"recipe": "text_to_image", "concepts_list": "x"}, GPU, "concepts_list", 64),
        ({"aspect_ratio_buckets": True, "resolution": 520}, GPU, "resolution", 64),
        ({"validation_split": 0.1, "validation_data_dir": "x"}, GPU, "validation_split", 64),
        ({"optimizer": "prodigy"}, GPU, "lr", 64),
        (
            {
                "optimizer": "prodigy",
                "learning_rate": 1.0,
                "train_text_encoder": True,
                "text_encoder_lr": 0.5,
            },
            GPU,
            "text_encoder_lr",
            64,
        ),
        (
            {"cache_text_embeddings": "memory", "train_text_encoder": True},
            GPU,
            "cache_text_embeddings",
            64,
        ),
    ],
)
def test_what_does_not_work_is_one_problem(values, topology, subject, code):
    (problem,) = problems(spec(**values), topology)
    assert (problem.subject, problem.code) == (subject, code)
    assert problem.found and problem.remedy.endswith(".")


@pytest.mark.parametrize(
    ("device", "computes_in", "shown"),
    [
        ("cpu", "no or bf16", "CPU, which has no fast fp16"),
        ("npu", "no or bf16", "npu device without it"),
        ("mps", "no or bf16", "mps device without it"),
    ],
)
def test_what_a_device_computes_in_is_the_remedy(device, computes_in, shown):
    (problem,) = problems(spec(mixed_precision="fp16"), Topology(device, 1, fp16=False))
    assert problem.found == f"mixed_precision=fp16 on a {shown}"
    assert problem.remedy == f"Use mixed_precision={computes_in}."


@pytest.mark.parametrize("plugin", ["gemini", "low_level_zero", "fsdp"])
@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor", "prodigy"])
def test_strategies_that_shard_have_adamw_only(plugin, optimizer):
    found = problems(spec(plugin=plugin, optimizer=optimizer, learning_rate=1.0), GPU)
    assert ("optimizer", 64) in [(problem.subject, problem.code) for problem in found]
    assert "optimizer" not in [problem.subject for problem in problems(spec(plugin=plugin), GPU)]


def test_caches_of_what_stays_the_same():
    assert problems(spec(cache_latents="memory", center_crop=True, random_flip=True), GPU) == []
    assert problems(spec(cache_text_embeddings="disk"), GPU) == []


def test_what_is_just_possible_is_not_refused():
    for values in (
        {"lr_scheduler": "polynomial", "learning_rate": 1.1e-7},
        {"optimizer": "prodigy", "learning_rate": 0.1},
        {"optimizer": "prodigy", "learning_rate": 1.0, "text_encoder_lr": 1.0, "train_text_encoder": True},
        {"lr_warmup_steps": 399, "lr_scheduler": "cosine"},
        {"aspect_ratio_buckets": True, "resolution": 576},
        {"plugin": "fsdp", "reshard_after_forward": False, "cpu_offload": True},
        {"plugin": "low_level_zero", "zero_stage": 2, "cpu_offload": True},
        {"plugin": "gemini", "placement": "auto"},
        {"concepts_list": "x", "with_prior_preservation": True},
    ):
        assert problems(spec(**values), GPU) == [], values


@pytest.mark.parametrize(
    ("values", "topology", "remedy"),
    [
        ({"plugin": "gemini"}, CPU, "plugin=fsdp"),
        ({"plugin": "fsdp"}, Topology("mps", 1), "plugin=torch_ddp"),
        ({"plugin": "gemini", "mixed_precision": "no"}, GPU, "mixed_precision=bf16 or fp16, or plugin=fsdp"),
        (
            {"plugin": "torch_ddp_fp16", "mixed_precision": "bf16"},
            GPU,
            "mixed_precision=fp16, or plugin=torch_ddp",
        ),
        ({"plugin": "torch_ddp_fp16"}, CPU, "mixed_precision=no with plugin=torch_ddp or bf16 with"),
        ({"placement": "cpu"}, GPU, "placement=cuda, or use a plugin that has it: gemini"),
        (
            {"plugin": "gemini", "cpu_offload": True},
            GPU,
            "cpu_offload=0, or use a plugin that has it: fsdp, low",
        ),
        ({"plugin": "fsdp", "optimizer": "adafactor"}, GPU, "optimizer=adamw, or plugin=torch_ddp"),
        ({"optimizer": "prodigy"}, GPU, "Prodigy finds the rate itself"),
        ({"optimizer": "prodigy"}, GPU, "set lr=1, and no other"),
    ],
)
def test_a_remedy_names_what_works(values, topology, remedy):
    (problem,) = problems(spec(**values), topology)
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("values", "topology", "found"),
    [
        ({"placement": "cpu"}, GPU, "cpu with plugin=torch_ddp"),
        ({"plugin": "gemini", "cpu_offload": True}, GPU, "1 with plugin=gemini"),
        ({"plugin": "gemini", "placement": "auto"}, Topology("npu", 8), "auto on npu"),
        # mixed_precision=auto comes to fp32 there
        ({"plugin": "gemini"}, Topology("npu", 8, bf16=False, fp16=False), "no with plugin=gemini"),
        ({"plugin": "torch_ddp_fp16"}, CPU, "plugin=torch_ddp_fp16 on a CPU, which has no fast fp16"),
        ({"plugin": "fsdp", "optimizer": "adafactor"}, GPU, "adafactor with plugin=fsdp"),
        ({"optimizer": "prodigy", "learning_rate": 0.01}, GPU, "0.01 with optimizer=prodigy"),
        ({"attention": "flash"}, OLD_GPU, "flash in fp32"),  # mixed_precision=auto
        ({}, Topology("mps", 2), "2 processes on device=mps"),
        ({"with_prior_preservation": True}, GPU, "empty, with with_prior_preservation on"),
    ],
)
def test_what_is_wrong_is_named(values, topology, found):
    (problem,) = problems(spec(**values), topology)
    assert problem.found == found


def test_a_device_that_is_not_known_yet_refuses_nothing():
    assert problems(spec(), Topology("cuda", 1)) == []
    assert problems(spec(attention="flash"), Topology("cuda", 1)) == []


def test_one_process_needs_no_strategy():
    assert problems(spec(plugin="none"), CPU) == []


@pytest.mark.parametrize("attention", ["flash", "cudnn", "fa4", "cudnn,flash"])
def test_fast_attention_needs_half_precision_on_a_gpu(attention):
    (problem,) = problems(spec(attention=attention, mixed_precision="no"), GPU)
    assert (problem.code, problem.subject) == (64, "attention")
    assert "mixed_precision=bf16 or fp16" in problem.remedy
    assert problems(spec(attention=attention, mixed_precision="bf16"), GPU) == []


def test_a_list_may_end_with_a_backend_for_what_the_first_cannot():
    assert problems(spec(attention="cudnn,flash,math", mixed_precision="no"), GPU) == []
    assert problems(spec(attention="cudnn,flash,math"), CPU) == []


def test_two_processes_need_a_strategy():
    (problem,) = problems(spec(plugin="none"), Topology("cpu", 2))
    assert (problem.subject, problem.found) == ("plugin", "none with 2 processes")


def test_held_out_images_from_either_place_are_fine():
    assert problems(spec(validation_split=0.1), CPU) == []
    assert problems(spec(validation_data_dir="/held-out"), CPU) == []


@pytest.mark.parametrize(("precision", "number"), [("no", 4), ("bf16", 2), ("fp16", 2)])
def test_bytes_of_a_number(precision, number):
    assert width(spec(mixed_precision=precision), Topology("cuda", 1)) == number
