"""What the worker's packages can do here: its answers are those that a job would meet."""

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
