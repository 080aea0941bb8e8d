"""Tests of compilation: what `compile=auto` becomes, and what is refused."""

import pytest

from sdjob.automatic import Choice, compilation
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec

CPU, GPU, GPUS = Topology("cpu", 1), Topology("cuda", 1, bf16=True), Topology("cuda", 8, bf16=True)


def spec(**values):
    return RunSpec(pretrained_model_name_or_path="/m", output_dir="/o", **{"max_train_steps": 1000, **values})


@pytest.mark.parametrize(
    ("values", "topology", "lacking", "choice"),
    [
        ({}, GPU, "", ("blocks", "CUDA, 1000 forward passes")),
        ({}, GPUS, "", ("blocks", "CUDA, 1000 forward passes")),
        ({"plugin": "fsdp"}, GPU, "", ("blocks", "CUDA, 1000 forward passes")),
        ({"train_text_encoder": True}, GPU, "", ("blocks", "CUDA, 1000 forward passes")),
        ({}, CPU, "", ("off", "a CPU")),
        ({}, Topology("npu", 1), "", ("off", "not used on npu")),
        ({}, GPU, "Python.h", ("off", "no Python.h")),
        ({"max_train_steps": 400}, GPU, "", ("off", "it would not pay in 400 forward passes")),
        (
            {"max_train_steps": 400, "gradient_accumulation_steps": 3},
            GPU,
            "",
            ("blocks", "CUDA, 1200 forward passes"),
        ),
        ({"plugin": "gemini"}, GPUS, "", ("off", "plugin=gemini")),
        ({"lora_rank": 4, "use_dora": True}, GPU, "", ("off", "use_dora=1")),
        (
            {"aspect_ratio_buckets": True},
            GPU,
            "",
            ("off", "each size of aspect_ratio_buckets would be compiled"),
        ),
        ({"compile": "blocks", "max_train_steps": 1}, CPU, "", ("blocks", "as set")),
        ({"compile": "off"}, GPU, "", ("off", "as set")),
    ],
)
def test_auto(values, topology, lacking, choice):
    assert compilation.choose(spec(**values), topology, lacking) == Choice(*choice)


@pytest.mark.parametrize("topology", [CPU, GPU, GPUS, Topology("npu", 8)])
@pytest.mark.parametrize("plugin", ["torch_ddp", "fsdp", "gemini"])
@pytest.mark.parametrize("lacking", ["", "triton"])
@pytest.mark.parametrize("values", [{}, {"train_text_encoder": True}, {"lora_rank": 4, "use_dora": True}])
def test_auto_is_never_refused(values, lacking, plugin, topology):
    asked = spec(plugin=plugin, **values)
    chosen = asked.model_copy(update={"compile": compilation.choose(asked, topology, lacking).value})
    for each in (asked, chosen):
        assert list(compilation.problems(each, topology, lacking)) == []


@pytest.mark.parametrize(
    ("values", "topology", "lacking", "code", "found", "remedy"),
    [
        ({}, CPU, "compiler (g++ or clang++)", 69, "no compiler (g++ or clang++)", "apt-get install gcc g++"),
        ({}, GPU, "Python.h", 69, "no Python.h", "apt-get install python3-dev"),
        ({}, GPU, "triton", 69, "no triton", "pip install triton"),
        ({}, Topology("mps", 1), "", 69, "whole on device=mps", "use compile=off"),
        ({"lora_rank": 4, "lora_dropout": 0.5}, GPU, "", 64, "lora_dropout=0.5", "use compile=blocks"),
        ({"plugin": "fsdp"}, GPU, "", 64, "whole with plugin=fsdp", "use compile=blocks"),
        ({"train_text_encoder": True}, GPU, "", 64, "train_text_encoder on", "use compile=blocks"),
        ({"compile": "blocks", "plugin": "gemini"}, GPUS, "", 64, "blocks with plugin=gemini", "compile=off"),
        ({"lora_rank": 4, "use_dora": True}, GPU, "", 64, "use_dora on", "compile=off"),
    ],
)
def test_what_is_refused_by_name(values, topology, lacking, code, found, remedy):
    asked = spec(**{"compile": "whole", **values})
    (problem,) = compilation.problems(asked, topology, lacking)
    assert (problem.code, problem.subject) == (code, "compile")
    assert found in problem.found
    assert remedy in problem.remedy
