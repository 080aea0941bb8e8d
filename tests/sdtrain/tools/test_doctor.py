"""What the worker's packages can do here: its answers are those that a job would meet."""

import torch

from sdtrain.runtime import devices
from sdtrain.tools import doctor


def test_a_plugin_that_jobs_are_refused_here_is_refused_by_doctor_too():
    answers = {
        name: doctor._plugin(name, facts, devices.DEVICE_TYPES["cpu"])
        for name, facts in doctor.PLUGINS.items()
    }
    assert {name for name, why in answers.items() if not why} == {"none", "torch_ddp", "fsdp"}
    assert answers["torch_ddp_fp16"] == "plugin=torch_ddp_fp16 on a CPU, which has no fast fp16"
    assert answers["gemini"] == "needs a device of type cuda or npu"


def test_kernels_that_a_cpu_never_has_are_said_to_be_absent():
    answers = doctor._attention(devices.DEVICE_TYPES["cpu"])
    assert (answers["math"], answers["cudnn"], answers["efficient"]) == ("", *["not on this device"] * 2)


def test_a_compiler_needs_the_headers_of_python(tmp_path):
    fails = tmp_path / "cc"
    fails.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
    fails.chmod(0o755)
    assert doctor.compiler({"CC": str(fails)}) == "no Python.h (apt-get install python3-dev)"
    assert doctor.compiler({"CC": str(tmp_path / "none")}).endswith("No such file or directory")
    works = tmp_path / "works"
    works.write_text('#!/bin/sh\ncat > "$0.c"\n')
    works.chmod(0o755)
    assert doctor.compiler({"CC": str(works)}) == ""
    assert (tmp_path / "works.c").read_text() == "#include <Python.h>\n"


def test_packages_that_are_not_installed_are_said_to_be_absent():
    cpu = devices.DEVICE_TYPES["cpu"]
    assert doctor._bitsandbytes(cpu) in ("", "not installed")


def test_a_pytorch_without_cuda_has_no_version_of_it():
    """The launcher compares with the pins of the CUDA image where there is one."""
    assert doctor._torch()["cuda"] == (torch.version.cuda or "")
