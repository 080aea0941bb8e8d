"""Choosing a device, and proving the attention backend on it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention

from sdjob.problems import JobError
from sdjob.settings.choices import DEVICES
from sdjob.settings.compatibility import Topology
from sdjob.settings.plugins import DEVICE_FACTS
from sdtrain.model import attention
from sdtrain.runtime import devices
from tests.support.worker import PROJECT, environment

CPU = torch.device("cpu")
NETWORK = torch.nn.ModuleList([Attention(80, heads=2, dim_head=40), Attention(320, heads=2, dim_head=160)])


def only(monkeypatch, *names):
    monkeypatch.setattr(devices, "why_absent", lambda each: "" if each.name in (*names, "cpu") else "absent")


def test_auto_takes_the_first_that_is_there(monkeypatch):
    only(monkeypatch)
    assert devices.choose("auto").name == "cpu"
    only(monkeypatch, "xpu", "npu")
    assert devices.choose("auto").name == "npu"
    only(monkeypatch, "cuda", "npu")
    assert devices.choose("auto").name == "cuda"


def test_the_table_has_every_device_that_can_be_set():
    assert {"auto", *devices.DEVICE_TYPES} == {"auto", *DEVICE_FACTS} == set(DEVICES)


@pytest.mark.parametrize("name", ["abacus", "npu", "cuda"])
def test_what_is_not_there_is_69_with_a_remedy(monkeypatch, name):
    only(monkeypatch)
    with pytest.raises(JobError) as error:
        devices.choose(name)
    assert error.value.code == 69
    (problem,) = error.value.problems
    assert name in problem.found
    assert "auto" in problem.remedy
    assert ("torch_npu" in problem.remedy) == (name == "npu")


def test_a_vendor_without_its_package_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    assert devices.why_absent(devices.DEVICE_TYPES["gcu"])


def test_each_process_needs_a_device_of_its_own(monkeypatch):
    current = []
    runtime = SimpleNamespace(device_count=lambda: 2, set_device=current.append)
    monkeypatch.setattr(torch, "cuda", runtime)
    assert devices.device_of(devices.DEVICE_TYPES["cuda"], 1) == torch.device("cuda", 1)
    assert current == [1]
    with pytest.raises(JobError) as error:
        devices.device_of(devices.DEVICE_TYPES["cuda"], 2)
    assert error.value.code == 69
    assert "NPROC_PER_NODE=2" in str(error.value)


def test_a_cpu_is_shared_and_has_no_fast_bf16():
    assert devices.device_of(devices.DEVICE_TYPES["cpu"], 5) == CPU
    assert devices.has_bf16(devices.DEVICE_TYPES["cpu"]) is False
    assert devices.topology(devices.DEVICE_TYPES["cpu"], 2) == Topology("cpu", 2)
    assert devices.peak_memory(CPU) > 2**26


@pytest.mark.parametrize("name", ["auto", "sdpa", "math", "flash"])
def test_attention_that_runs(name):
    attention.prove(name, NETWORK, CPU, torch.float32)
    query = torch.randn(1, 2, 16, 40, generator=torch.Generator().manual_seed(0))
    plain = torch.softmax(query @ query.transpose(-1, -2) / 40**0.5, -1) @ query
    with attention.chosen(name):
        found = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_cached_memory_is_released_where_there_is_any(monkeypatch):
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append("cuda"))
    devices.release_cache(torch.device("cuda", 0))
    devices.release_cache(CPU)
    assert released == ["cuda"]


def test_autocast_is_asked_what_it_computes_in():
    cpu, absent = devices.DEVICE_TYPES["cpu"], devices.DEVICE_TYPES["cuda"]
    types = (torch.bfloat16, torch.float16, torch.float64)
    assert [devices.autocasts(cpu, dtype) for dtype in types] == [True, True, False]
    assert not devices.autocasts(absent, torch.bfloat16)


def test_bf16_counts_where_the_device_is_made_for_it(monkeypatch):
    """PyTorch's own is_bf16_supported says yes of a V100 too."""
    for capability, made_for_it in (((7, 0), False), ((8, 0), True), ((9, 0), True)):
        runtime = SimpleNamespace(get_device_capability=lambda found=capability: found)
        monkeypatch.setattr(torch, "cuda", runtime)
        assert devices.has_bf16(devices.DEVICE_TYPES["cuda"]) is made_for_it


def test_attention_is_proven_at_every_head_size_of_the_unet():
    assert attention.head_sizes(NETWORK) == [40, 160]


def test_xformers_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(JobError) as error:
        attention.prove("xformers", NETWORK, CPU, torch.float32)
    assert error.value.code == 69
    assert "xformers" in str(error.value)


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_attention_that_does_not_run_here_is_69(name):
    with pytest.raises(JobError) as error:
        attention.prove(name, NETWORK, CPU, torch.float32)
    assert error.value.code == 69
    assert name in str(error.value) and "attention=auto" in str(error.value)


def test_attention_that_computes_something_else_does_not_count(monkeypatch):
    plain = attention.scaled_dot_product_attention

    def wrong(query, key, value):
        return plain(query, key, value) * (1.1 if query.dtype == torch.bfloat16 else 1)

    assert attention.failure("math", 40, CPU, torch.bfloat16) == ""
    monkeypatch.setattr(attention, "scaled_dot_product_attention", wrong)
    assert "differ from those in fp32" in attention.failure("math", 40, CPU, torch.bfloat16)


def test_attention_without_a_backward_pass_does_not_count(monkeypatch):
    class ForwardOnly(torch.autograd.Function):
        @staticmethod
        def forward(context, query, key, value):
            return query * key.sum()

        @staticmethod
        def backward(context, gradient):
            raise RuntimeError("no kernel for the backward pass")

    monkeypatch.setattr(attention, "scaled_dot_product_attention", ForwardOnly.apply)
    assert attention.failure("math", 40, CPU, torch.float32) == "no kernel for the backward pass"


def test_why_a_device_is_absent(monkeypatch):
    assert devices.why_absent(devices.DEVICE_TYPES["cpu"]) == ""
    assert devices.why_absent(devices.DEVICE_TYPES["gcu"]) == "the package torch_gcu is not installed"
    monkeypatch.setattr(devices.torch.version, "cuda", None)
    assert devices.why_absent(devices.DEVICE_TYPES["cuda"]) == "this build of PyTorch is for CPUs only"
    monkeypatch.setattr(devices.torch.version, "cuda", "12.8")
    assert devices.why_absent(devices.DEVICE_TYPES["cuda"]) == "PyTorch finds none"


def test_what_runs_is_what_was_asked_for_or_what_pytorch_chooses():
    assert attention.running("math", NETWORK, CPU, torch.float32) == "math"
    assert attention.running("auto", NETWORK, CPU, torch.float32) in ("flash", "math")


def test_a_choice_that_depends_on_the_heads_names_them(monkeypatch):
    kernels = {40: torch.nn.attention.SDPBackend.FLASH_ATTENTION, 160: torch.nn.attention.SDPBackend.MATH}
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v: int(kernels[q.shape[-1]]))
    assert attention.running("auto", NETWORK, CPU, torch.float32) == "flash (40), math (160)"


@pytest.mark.parametrize(
    ("types", "bf16"), [("torch.bfloat16, torch.float16", True), ("torch.float16", False)]
)
def test_a_vendors_package_is_imported_and_its_device_used(tmp_path, types, bf16):
    """In a process of its own: what registers a device with PyTorch cannot be undone."""
    (tmp_path / "torch_gcu.py").write_text(
        "import torch, types\n"
        "torch.utils.rename_privateuse1_backend('gcu')\n"
        "current = []\n"
        "torch._register_device_module('gcu', types.SimpleNamespace(\n"
        "    is_available=lambda: True, device_count=lambda: 2, set_device=current.append,\n"
        f"    get_amp_supported_dtype=lambda: [{types}], max_memory_allocated=lambda: 12345))\n"
    )
    code = (
        "import torch\n"
        "from sdtrain.runtime import devices\n"
        "kind = devices.choose('auto')\n"
        "place = devices.device_of(kind, 1)\n"
        "print(kind.name, kind.backend, place, torch.gcu.set_device.__self__, devices.topology(kind, 2),\n"
        "      devices.peak_memory(place))\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(PYTHONPATH=paths),
        capture_output=True,
        text=True,
        check=False,
    )
    where = Topology("gcu", 2, bf16=bf16, fp16=True)
    assert done.stdout.strip() == f"gcu eccl gcu:1 [1] {where} 12345", done.stderr
