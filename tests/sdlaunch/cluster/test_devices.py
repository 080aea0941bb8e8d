"""Tests of devices and nvidia: the driver first, then device nodes; torch is asked only where nothing else knows."""

import json
import subprocess
from functools import partial

import pytest

from sdlaunch.cluster import devices, nvidia, nvml
from sdlaunch.cluster.nvidia import TorchBuild
from tests.support.nvml import GIB, Library, gpu

CUDA_BUILD = TorchBuild("2.11.0", "12.8", None)


@pytest.fixture(autouse=True)
def build(monkeypatch):
    """The installed PyTorch is a CUDA build, unless a test sets another one."""

    def install(found):
        monkeypatch.setattr(devices, "torch_build", lambda: found)

    install(CUDA_BUILD)
    return install


@pytest.fixture
def asked(monkeypatch):
    """Replaces the process that asks torch; the list holds its calls."""
    calls = []

    def install(**answer):
        def run(args, **options):
            calls.append(args)
            answered = {"count": 0, "bf16": False, "memory": 0, "why": "", **answer}
            return subprocess.CompletedProcess(args, 0, stdout=json.dumps(answered))

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    install()
    install.calls = calls
    return install


@pytest.fixture
def look(tmp_path):
    """`find` below a folder instead of /, with these device nodes and GPUs of the driver."""

    def find(wanted="auto", *gpus, nodes=(), environ=None, **driver):
        for node in nodes:
            path = tmp_path / node
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        query = partial(nvml.query, Library(*gpus, **driver)) if gpus or driver else no_driver
        return devices.find(wanted, environ or {}, tmp_path, query)

    return find


def no_driver():
    raise nvml.Unavailable("no driver library (libnvidia-ml.so.1)")


def only(found):
    (problem,) = found.problems
    assert problem.code == 69
    return problem


def test_without_an_accelerator_it_is_a_cpu_in_silence(look, asked):
    found = look()
    assert (found.type, found.problems, found.warnings, found.why) == (
        "cpu",
        (),
        (),
        "auto: no accelerator found",
    )
    assert asked.calls == []
    hidden = look(environ={"CUDA_VISIBLE_DEVICES": ""})  # set in an image, on a machine without GPUs
    assert (hidden.type, hidden.problems, hidden.warnings) == ("cpu", (), ())


def test_a_chosen_cpu_asks_neither_driver_nor_torch(tmp_path, asked):
    assert devices.find("cpu", {}, tmp_path, lambda: pytest.fail("asked")).type == "cpu"
    assert asked.calls == []


def test_the_driver_says_everything_without_torch(look, asked):
    found = look("auto", gpu(), gpu(1, total=40 * GIB, free=40 * GIB))
    assert (found.type, found.count, found.bf16, found.memory) == ("cuda", 2, True, 40 * GIB)
    assert (found.why, found.problems, found.warnings) == ("auto: 2 NVIDIA devices (H100)", (), ())
    assert look("cuda", gpu()).why == ""
    assert asked.calls == []


@pytest.mark.parametrize(
    ("capabilities", "bf16"),
    [([(8, 0), (9, 0)], True), ([(7, 5), (9, 0)], False), ([None, (9, 0)], None)],
)
def test_bf16_needs_it_on_every_device(look, capabilities, bf16):
    gpus = [gpu(index, capability=each) for index, each in enumerate(capabilities)]
    assert look("auto", *gpus).bf16 is bf16


def test_a_device_that_others_use_is_a_warning(look):
    (warning,) = look("auto", gpu(), gpu(1, free=10 * GIB)).warnings
    assert "GPU 1 (H100)" in warning and "10.7 GB of 85.9 GB free" in warning


def test_a_lost_gpu_is_named(look):
    found = look("auto", gpu(), gpu(1, error=15))
    assert (found.count, found.warnings) == (1, ("GPU 1: GPU is lost",))


def test_unknown_memory_and_names_are_left_out(look):
    found = look("auto", gpu(name=None, total=None))
    assert (found.count, found.memory, found.why) == (1, None, "auto: 1 NVIDIA device")


GPUS = [gpu(index) for index in range(3)]


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0", 1), ("2,1", 2), ("0,1,2", 3), ("GPU-1abc", 1), ("GPU-0,GPU-2", 2), (" 1 , 2 ", 2), (None, 3)],
)
def test_visible_devices(look, visible, count):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = look("cuda", *GPUS, environ=environ)
    assert (found.count, found.problems, found.warnings) == (count, (), ())


@pytest.mark.parametrize("visible", ["0,-1,2", "0,7", "0,GPU-x,1", "0,,1"])
def test_what_follows_an_invalid_entry_is_not_visible(look, visible):
    found = look("cuda", *GPUS, environ={"CUDA_VISIBLE_DEVICES": visible})
    (warning,) = found.warnings
    assert (found.count, found.problems) == (1, ())
    assert "CUDA_VISIBLE_DEVICES" in warning


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_hidden_devices_are_a_warning_for_auto_and_a_problem_for_cuda(look, visible):
    environ = {"CUDA_VISIBLE_DEVICES": visible}
    problem = only(look("cuda", *GPUS, environ=environ))
    assert problem.subject == "CUDA_VISIBLE_DEVICES"
    assert "hides all 3 NVIDIA devices" in problem.found
    found = look("auto", *GPUS, environ=environ)
    (warning,) = found.warnings
    assert (found.type, found.problems) == ("cpu", ())
    assert "CUDA_VISIBLE_DEVICES" in warning and "3 NVIDIA devices" in warning
    assert look("cpu", *GPUS, environ=environ).warnings == ()


@pytest.mark.parametrize(
    "visible", ["3", "7,0", "GPU-abc", "MIG-abc", "0,0", "gpu", "NoDevFiles", "9" * 5000]
)
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_devices_that_are_not_there_are_the_variables_problem(look, wanted, visible):
    problem = only(look(wanted, *GPUS, environ={"CUDA_VISIBLE_DEVICES": visible}))
    assert problem.subject == "CUDA_VISIBLE_DEVICES"
    assert repr(visible) in problem.found
    assert "0, 1, 2" in problem.remedy and "CUDA build" not in problem.remedy


PARTS = [{"name": "1g.10gb", "uuid": f"MIG-{n}", "total": 10 * GIB, "free": 10 * GIB} for n in range(2)]


@pytest.mark.parametrize("visible", [None, "0", "MIG-0", "GPU-0abc"])
def test_a_gpu_in_mig_mode_counts_as_one_mig_device(look, visible):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = look("auto", gpu(mig=PARTS), environ=environ)
    assert (found.count, found.memory, found.warnings, found.problems) == (1, 10 * GIB, (), ())


def test_several_mig_devices_are_one_for_cuda(look, asked):
    found = look("cuda", gpu(mig=PARTS), environ={"CUDA_VISIBLE_DEVICES": "MIG-0,MIG-1"})
    (warning,) = found.warnings
    assert (found.count, asked.calls) == (1, [])
    assert "2 MIG devices" in warning and "one per process" in warning


def test_mig_mode_without_a_device(look):
    assert "nvidia-smi mig" in only(look("cuda", gpu(mig=[]))).remedy


def test_mig_devices_among_whole_gpus_are_counted_by_torch(look, asked):
    asked(count=1, bf16=True, memory=5)
    found = look("cuda", gpu(mig=PARTS), gpu(1))
    assert (found.count, found.memory, len(asked.calls)) == (1, 5, 1)


@pytest.mark.parametrize(
    ("driver", "needs", "fits"),
    [
        (12020, "12.8", True),  # a driver runs every build of its own major version
        (12020, "13.0", False),
        (11040, "12.1", False),
        (13000, "12.8", True),
    ],
)
def test_a_driver_that_is_too_old_for_this_pytorch(look, build, asked, driver, needs, fits):
    build(TorchBuild("2.9.1", needs, None))
    for wanted in ("auto", "cuda"):
        found = look(wanted, gpu(), version="535.1", cuda=driver)
        assert (found.problems == ()) is fits
        if not fits:
            assert all(word in only(found).found for word in ("535.1", f"CUDA {needs}", "too old"))
            assert "Update the NVIDIA driver" in only(found).remedy
    assert asked.calls == []


@pytest.mark.parametrize(
    ("built", "words"),
    [(TorchBuild("2.13.0+cpu", None, None), "a CPU build"), (TorchBuild("2.9", None, "6.4"), "for ROCm")],
)
@pytest.mark.parametrize("gpus", [[gpu()], []])
def test_a_pytorch_that_is_built_for_something_else_is_named(look, build, asked, gpus, built, words):
    build(built)
    problem = only(look("cuda", *gpus, nodes=["dev/nvidia0"]))
    assert words in problem.found and "CUDA build" in problem.remedy
    assert asked.calls == []


def test_without_pytorch_the_driver_counts(look, build):
    build(None)  # which the check of the packages reports
    assert look("cuda", gpu()).count == 1


def test_a_fabric_that_is_not_ready_is_confirmed_by_torch(look, asked):
    asked(count=1, bf16=True, memory=5)
    assert look("cuda", gpu(fabric=2)).problems == ()
    asked(why="CUDA error 802: system not yet initialized")
    problem = only(look("cuda", gpu(fabric=2)))
    assert "802" in problem.found and "fabricmanager" in problem.remedy
    asked.calls.clear()
    assert look("cuda", gpu(fabric=3)).problems == ()
    assert asked.calls == []


def test_device_nodes_without_the_drivers_library_are_counted_by_torch(look, asked):
    asked(count=3, bf16=True, memory=80)
    found = look(nodes=["dev/nvidia0", "dev/nvidia1", "dev/nvidia10", "dev/nvidiactl", "dev/nvidia-uvm"])
    assert (found.type, found.count, found.bf16, found.memory) == ("cuda", 3, True, 80)
    assert found.why == "auto: 3 NVIDIA devices"


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040).", "Update the driver"),
        ("Error 802: system not yet initialized", "fabricmanager"),
        ("No CUDA GPUs are available", "--gpus all"),
        ("Torch not compiled with CUDA enabled", "CUDA build"),
    ],
)
def test_device_nodes_that_torch_cannot_use_are_a_problem(look, asked, why, remedy):
    asked(why=why)
    problem = only(look(nodes=["dev/nvidia0"]))
    assert why in problem.found and "libnvidia-ml" in problem.found
    assert remedy in problem.remedy and "device=cpu" in problem.remedy


def test_a_driver_that_refuses_gives_its_own_reason(look, asked):
    problem = only(look("cuda", nodes=["dev/nvidia0"], init=18))
    assert "Reboot" in problem.remedy


def test_a_driver_that_does_not_answer(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(devices, "_DRIVER_TIMEOUT", 0.01)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    found = devices.find("auto", {}, tmp_path, lambda: __import__("time").sleep(0.2))
    assert "did not answer" in only(found).found


def test_hidden_device_nodes(look, asked):
    nodes, environ = ["dev/nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}
    assert only(look("cuda", nodes=nodes, environ=environ)).subject == "CUDA_VISIBLE_DEVICES"
    found = look(nodes=nodes, environ=environ)
    assert (found.type, len(found.warnings), asked.calls) == ("cpu", 1, [])


@pytest.mark.parametrize(("node", "system"), [("dxg", "WSL2"), ("nvhost-gpu", "Jetson"), ("nvmap", "Jetson")])
def test_systems_where_only_torch_knows(look, asked, node, system):
    asked(count=1, bf16=True, memory=8)
    found = look(nodes=[f"dev/{node}"])
    assert (found.type, found.count, found.why) == ("cuda", 1, "auto: 1 NVIDIA device")
    asked(why="no")
    found = look(nodes=[f"dev/{node}"])
    (warning,) = found.warnings
    assert (found.type, found.problems) == ("cpu", ())
    assert system in warning and "training on the CPU" in warning
    assert system in only(look("cuda")).found


@pytest.mark.parametrize(
    ("nodes", "what", "remedy"),
    [
        (["proc/driver/nvidia/version"], "NVIDIA GPU", "--gpus all"),
        (["dev/nvidiactl"], "NVIDIA GPU", "--gpus all"),
        (["dev/kfd"], "AMD GPU", "/dev/dri"),
        (["dev/neuron0"], "AWS Neuron", "device=cpu"),
    ],
)
def test_a_cpu_run_beside_the_sign_of_an_accelerator_says_so(look, nodes, what, remedy):
    found = look(nodes=nodes)
    (warning,) = found.warnings
    assert (found.type, found.problems) == ("cpu", ())
    assert what in warning and remedy in warning
    assert remedy in only(look("cuda")).remedy
    assert look("cpu").warnings == ()


def test_a_gpu_on_the_bus_without_a_driver(look, tmp_path):
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "class").write_text("0x030200\n")
    (device / "vendor").write_text("0x1af4\n")
    assert look().warnings == ()
    (device / "vendor").write_text("0x10de\n")
    (warning,) = look().warnings
    assert "PCI bus" in warning
    (device / "class").write_text("0x040300\n")  # the sound of a graphics card
    assert look().warnings == ()


def test_cuda_without_a_device_is_a_problem(look):
    assert "no driver library" in only(look("cuda")).found


def test_a_vendors_device_is_taken_as_given(look):
    found = look("gcu")
    assert (found.type, found.count, found.problems) == ("gcu", None, ())


@pytest.mark.parametrize(
    ("node", "device"), [("davinci0", "npu"), ("cambricon_dev0", "mlu"), ("gcu0", "gcu"), ("mtgpu.0", "musa")]
)
def test_another_vendors_device_is_reported(look, node, device):
    assert f"device={device}" in only(look(nodes=[f"dev/{node}"])).remedy
    assert device in only(look("cuda")).found
    assert look("cpu").problems == ()
    assert look(device).type == device


def test_amd_devices_are_cuda_to_torch_and_counted_where_they_can_compute(look, asked, build):
    nodes = ["dev/dri/renderD128", "dev/dri/renderD129", "dev/dri/card0"]
    assert look(nodes=nodes).type == "cpu"  # a display, without the compute driver
    assert only(look("cuda", nodes=["dev/kfd"])).remedy.startswith("Install a ROCm build")  # not one for CUDA
    build(TorchBuild("2.9", None, "6.4"))
    asked(count=2, bf16=True, memory=5)
    found = look()
    assert (found.type, found.count, found.bf16, found.why) == ("cuda", 2, True, "auto: 2 AMD devices")
    asked()
    assert "ROCm" in only(look()).remedy
    assert "HIP_VISIBLE_DEVICES='7'" in only(look(environ={"HIP_VISIBLE_DEVICES": "7"})).found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", (None, None)),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = '12.8'\nhip = None\n", ("12.8", None)),
        ("__version__ = '2.13.0+cpu'\ncuda = None\nhip = '6.4.1'\n", (None, "6.4.1")),
    ],
)
def test_the_build_of_torch_is_read_without_importing_it(tmp_path, monkeypatch, text, expected):
    (tmp_path / "version.py").write_text(text)
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(nvidia, "find_spec", lambda name: spec)
    assert nvidia.torch_build() == TorchBuild("2.13.0+cpu", *expected)
    (tmp_path / "version.py").unlink()
    assert nvidia.torch_build() is None
