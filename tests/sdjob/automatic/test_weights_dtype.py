"""Which weights `weights_dtype=auto` computes with. Tests of weights_dtype.py."""

import pytest

from sdjob.automatic import weights_dtype
from sdjob.exit_codes import ExitCode
from sdjob.settings import compatibility
from sdjob.settings.compatibility import Topology
from tests.support.specs import spec

GPU, OLD_GPU, UNKNOWN = Topology("cuda", 2, True, True), Topology("cuda", 2, False, True), Topology("cuda", 2)
CPU = Topology("cpu", 2)


@pytest.mark.parametrize(
    ("settings", "topology", "value"),
    [
        ({}, GPU, "bf16"),
        ({}, OLD_GPU, "fp32"),
        ({}, UNKNOWN, "auto"),
        ({}, CPU, "fp32"),
        ({"mixed_precision": "bf16"}, UNKNOWN, "bf16"),
        ({"mixed_precision": "bf16"}, CPU, "fp32"),
        ({"mixed_precision": "bf16", "weights_dtype": "bf16"}, CPU, "bf16"),
        ({"mixed_precision": "no"}, GPU, "fp32"),
        ({"plugin": "torch_ddp_fp16"}, GPU, "fp32"),
        ({"lora_rank": 4}, GPU, "fp32"),
        ({"plugin": "fsdp"}, GPU, "auto"),
        ({"weights_dtype": "fp32"}, GPU, "fp32"),
    ],
)
def test_bf16_weights_where_a_device_gains_by_them(settings, topology, value):
    choice = weights_dtype.choose(spec(**settings), topology)
    assert choice.value == value
    assert choice.reason


BAD, NO_HARDWARE = ExitCode.BAD_SETTING, ExitCode.NO_HARDWARE


@pytest.mark.parametrize(
    ("settings", "topology", "code", "found", "remedy"),
    [
        ({"plugin": "fsdp"}, GPU, BAD, "bf16 with plugin=fsdp", "Leave weights_dtype=auto"),
        ({"lora_rank": 4}, GPU, BAD, "bf16 with lora_rank=4", "Leave weights_dtype=auto"),
        ({"mixed_precision": "fp16"}, GPU, BAD, "bf16 with mixed_precision=fp16", "Set mixed_precision=bf16"),
        ({}, CPU, BAD, "bf16 with mixed_precision=no", "Set mixed_precision=bf16"),
        ({}, OLD_GPU, NO_HARDWARE, "bf16 on a cuda device without it", "Leave weights_dtype=auto"),
    ],
)
def test_bf16_weights_are_refused_where_they_are_not_possible(settings, topology, code, found, remedy):
    problems = compatibility.problems(spec(weights_dtype="bf16", **settings), topology)
    problem = next(each for each in problems if each.subject == "weights_dtype")
    assert (problem.code, problem.found) == (code, found)
    assert problem.remedy.startswith(remedy)


def test_bf16_weights_are_accepted_where_they_are():
    assert compatibility.problems(spec(weights_dtype="bf16"), GPU) == []
    on_cpu = spec(weights_dtype="bf16", mixed_precision="bf16")
    assert compatibility.problems(on_cpu, CPU) == []
