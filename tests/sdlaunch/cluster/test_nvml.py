"""The driver's answer through its C interface: a Python replacement of the library, and a compiled one."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from sdlaunch.cluster import nvml
from sdlaunch.cluster.nvml import Driver, Unit
from tests.sdlaunch.workspace import plan_json
from tests.support.nvml import FUNCTIONS, GIB, Library, gpu


def test_everything_that_a_driver_knows():
    library = Library(gpu(), gpu(1, name="A100", capability=(8, 0), fabric=3), version="550.1", cuda=12040)
    first = Unit(0, "H100", "GPU-0abc", (9, 0), 80 * GIB, 79 * GIB, fabric=0)
    second = Unit(1, "A100", "GPU-1abc", (8, 0), 80 * GIB, 79 * GIB, fabric=3)
    assert nvml.query(library) == Driver("550.1", (12, 4), (first, second))
    assert library.closed


def test_mig_devices_are_those_of_their_gpu():
    parts = [
        {"name": "H100 1g.10gb", "uuid": f"MIG-{n}", "total": 10 * GIB, "free": 9 * GIB} for n in range(2)
    ]
    (found,) = nvml.query(Library(gpu(mig=parts))).gpus
    assert found.mig == tuple(
        Unit(n, "H100 1g.10gb", f"MIG-{n}", (9, 0), 10 * GIB, 9 * GIB, is_mig=True) for n in range(2)
    )
    assert nvml.query(Library(gpu(mig=[]))).gpus[0].mig == ()


NEEDED = {"nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2"}


@pytest.mark.parametrize("missing", sorted({*FUNCTIONS} - NEEDED))
def test_a_function_that_is_missing_costs_its_own_field_only(missing):
    whole, found = nvml.query(Library(gpu())), nvml.query(Library(gpu(), without=(missing,)))
    facts = {**vars(whole), **vars(whole.gpus[0])}, {**vars(found), **vars(found.gpus[0])}
    lost = {name for name in facts[0] if facts[0][name] != facts[1][name]} - {"gpus"}
    assert all(facts[1][name] is None for name in lost)
    assert len(lost) <= (2 if "Memory" in missing else 1)


def test_a_driver_with_the_least_that_is_needed():
    assert nvml.query(Library(gpu(), without={*FUNCTIONS} - NEEDED)) == Driver(None, None, (Unit(0),))


def test_facts_that_a_device_does_not_have():
    (found,) = nvml.query(Library(gpu(name=None, total=None, capability=None))).gpus
    assert (found.name, found.total, found.free, found.capability) == (None, None, None, None)


def test_a_gpu_that_cannot_be_opened_is_named():
    found = nvml.query(Library(gpu(), gpu(1, error=15)))
    assert [unit.index for unit in found.gpus] == [0]
    assert found.failed == ("GPU 1: GPU is lost",)


def test_without_a_library_or_a_driver():
    def absent(name):
        raise OSError(name)

    with pytest.raises(nvml.Unavailable, match="no driver library"):
        nvml.query(absent)
    with pytest.raises(nvml.Unavailable, match="Driver Not Loaded"):
        nvml.query(Library(init=9))
    with pytest.raises(nvml.Unavailable, match="error 9"):
        nvml.query(Library(init=9, without=("nvmlErrorString",)))
    with pytest.raises(nvml.Unavailable) as caught:
        nvml.query(Library(init=18))
    assert "Reboot" in caught.value.remedy


@pytest.fixture
def compiled(tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    library, source = tmp_path / nvml.LIBRARY, Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_a_compiled_library(compiled):
    found = nvml.query(lambda name: ctypes.CDLL(str(compiled)))
    assert found.cuda == (12, 4)
    assert found.gpus[1] == Unit(1, "Fake H100", "GPU-1", (9, 0), 80 * GIB, 79 * GIB)


def test_a_job_reads_the_library_of_the_machine(compiled, workspace):
    settings = {**workspace, "device": "auto", "LD_LIBRARY_PATH": str(compiled.parent)}
    code, printed = plan_json(**settings, CUDA_VISIBLE_DEVICES="2")
    (problem,) = printed["problems"]
    assert (code, problem["subject"]) == (69, "CUDA_VISIBLE_DEVICES")
    code, printed = plan_json(**settings, CUDA_VISIBLE_DEVICES="-1")
    (warning,) = printed["warnings"]
    assert (code, printed["settings"]["device"]["value"]) == (0, "cpu")
    assert "2 NVIDIA devices" in warning and "CUDA_VISIBLE_DEVICES" in warning
