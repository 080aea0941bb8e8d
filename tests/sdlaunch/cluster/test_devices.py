"""Devices are found through their device nodes; torch is asked only where there are any."""

import subprocess

import psutil
import pytest

from sdlaunch.cluster import devices


@pytest.fixture
def dev(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def torch_says(monkeypatch):
    """Replaces the question to torch by an answer; the list of calls says whether it was asked."""
    calls = []

    def install(answer):
        def run(command, **options):
            calls.append(command)
            return subprocess.CompletedProcess(command, 0, stdout=answer)

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return install


def test_without_an_accelerator_it_is_a_cpu_and_torch_is_not_asked(tmp_path, torch_says):
    calls = torch_says("")
    found = devices.find("auto", {}, tmp_path)
    assert (found.type, found.problems, calls) == ("cpu", (), [])
    assert "no accelerator" in found.why


def test_a_chosen_cpu_needs_no_answer_from_torch(dev, torch_says):
    calls = torch_says("")
    assert devices.find("cpu", {}, dev).type == "cpu"
    assert calls == []


def test_nvidia_devices_are_counted_by_torch(dev, torch_says):
    torch_says('{"count": 3, "bf16": true, "memory": 80000000000}')
    found = devices.find("auto", {}, dev)
    assert (found.type, found.count, found.bf16, found.memory) == ("cuda", 3, True, 80_000_000_000)
    assert "3 NVIDIA devices" in found.why


def test_devices_that_torch_cannot_use_are_a_problem(dev, torch_says):
    torch_says('{"count": 0, "bf16": false, "memory": 0}')
    (problem,) = devices.find("auto", {}, dev).problems
    assert problem.code == 69
    assert "device=cpu" in problem.remedy


def test_cuda_without_a_device_is_a_problem(tmp_path):
    (problem,) = devices.find("cuda", {}, tmp_path).problems
    assert problem.code == 69


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("0,-1,2", 1), ("0,1,2,3,4,5", 3), ("GPU-abc", 1)],
)
def test_hidden_devices_do_not_count(dev, torch_says, visible, count):
    torch_says("not json")  # a torch that cannot answer: the nodes are counted
    found = devices.find("auto", {"CUDA_VISIBLE_DEVICES": visible}, dev)
    assert (found.type, found.count) == (("cuda", count) if count else ("cpu", found.cores))


def test_a_vendors_device_is_taken_as_given(tmp_path):
    found = devices.find("gcu", {}, tmp_path)
    assert (found.type, found.count, found.problems) == ("gcu", None, ())


@pytest.mark.parametrize(
    ("node", "device"), [("davinci0", "npu"), ("cambricon_dev0", "mlu"), ("gcu0", "gcu"), ("mtgpu.0", "musa")]
)
def test_another_vendors_device_is_reported(tmp_path, node, device):
    (tmp_path / node).touch()
    (problem,) = devices.find("auto", {}, tmp_path).problems
    assert (problem.code, f"device={device}" in problem.remedy) == (69, True)
    assert devices.find("cpu", {}, tmp_path).problems == ()
    assert devices.find(device, {}, tmp_path).type == device


def test_amd_devices_are_cuda_to_torch_and_counted_where_they_can_compute(tmp_path, torch_says):
    (tmp_path / "dri").mkdir()
    for name in ("renderD128", "renderD129", "card0"):
        (tmp_path / "dri" / name).touch()
    assert devices.find("auto", {}, tmp_path).type == "cpu"  # a display, without the compute driver
    (tmp_path / "kfd").touch()
    torch_says('{"count": 2, "bf16": true, "memory": 5}')
    found = devices.find("auto", {}, tmp_path)
    assert (found.type, found.count, found.bf16, found.why) == ("cuda", 2, True, "auto: 2 AMD devices")
    torch_says('{"count": 0, "bf16": false, "memory": 0}')
    (problem,) = devices.find("auto", {}, tmp_path).problems
    assert problem.code == 69 and "ROCm" in problem.remedy


def test_host_memory_is_limited_by_the_container(tmp_path):
    installed = devices.host_memory(tmp_path)
    assert installed == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.host_memory(tmp_path) == installed
    (tmp_path / "memory.max").write_text("1048576\n")
    assert devices.host_memory(tmp_path) == 1_048_576
