"""`python -m sdtrain.tools.doctor`: the capabilities of PyTorch and its companions on this machine, as one JSON object.

Every answer comes from trying: empty text if something works, otherwise the reason in the library's own words.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist

from sdjob.problems import JobError
from sdjob.settings import compatibility
from sdjob.settings.choices import ATTENTION_ALONE, ATTENTION_LISTED
from sdjob.settings.plugins import PLUGINS, PluginFacts
from sdjob.settings.run_spec import RunSpec
from sdtrain.model import attention
from sdtrain.runtime import devices

_HEAD = 40  # channels of an attention head of Stable Diffusion 1.x, the size that fewest kernels accept


def examine() -> dict[str, Any]:
    """Torch and the libraries of its build, devices, backends, attention kernels, plugins."""
    device_type = devices.choose("auto")
    return {
        "torch": _torch(),
        "device": device_type.name,
        "devices": {name: device(each) for name, each in devices.DEVICE_TYPES.items()},
        "distributed": _backends(),
        "attention": _attention(device_type),
        "compiling and optional packages": {
            "C compiler": compiler(),
            "bitsandbytes": _bitsandbytes(device_type),
            "flash-attn-4": attention.why_not_fa4(),
        },
        "plugins": {name: _plugin(name, facts, device_type) for name, facts in PLUGINS.items()},
    }


def device(device_type: devices.DeviceType) -> dict[str, Any]:
    """Whether devices of this type can be used, why not, and a list of them."""
    why = devices.why_absent(device_type)
    availability: dict[str, Any] = {"available": not why, "why": why}
    if why or device_type.name in ("cpu", "mps"):
        return availability
    runtime = device_type.runtime
    each = [
        f"{runtime.get_device_name(i)}, {runtime.get_device_properties(i).total_memory // 2**30} GiB"
        for i in range(runtime.device_count())
    ]
    return {**availability, "each": each, "bf16": devices.has_bf16(device_type)}


def _torch() -> dict[str, str]:
    """Versions of PyTorch and of the libraries that it was built with."""
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
        "cudnn": str(cudnn) if cudnn else "",
    }


def _backends() -> dict[str, str]:
    """Each backend of torch.distributed, with the reason why processes cannot communicate through it."""
    names = dict.fromkeys(device_type.backend for device_type in devices.DEVICE_TYPES.values())
    missing = "not part of this build of PyTorch"
    return {name: "" if dist.is_backend_available(name) else missing for name in names}


def _attention(device_type: devices.DeviceType) -> dict[str, str]:
    """Each attention backend, tried in the precision in which this device trains."""
    device = torch.device(device_type.torch_type)
    dtype = torch.float32
    if device_type.name != "cpu":
        dtype = torch.bfloat16 if devices.has_bf16(device_type) else torch.float16
    # For kernels that no CPU has, PyTorch's own message is about settings that were turned off.
    absent = ("cudnn", "efficient") if device_type.name == "cpu" else ()
    return {
        name: "not on this device" if name in absent else attention.failure(name, _HEAD, device, dtype)
        for name in (*ATTENTION_ALONE, *ATTENTION_LISTED)
        if name not in ("auto", "fa4")  # fa4: below, with the packages
    }


def compiler(environ: Mapping[str, str] = os.environ) -> str:
    """Why torch.compile and Triton cannot build what they generate; empty: they can."""
    program = environ.get("CC") or next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), "")
    if not program:
        return "no C compiler (apt-get install gcc libc6-dev)"
    command = [program, "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-xc", "-"]
    try:
        done = subprocess.run(
            command, input="#include <Python.h>\n", capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"{program}: {error.strerror}"
    if done.returncode == 0:
        return ""
    if "Python.h" in done.stderr:
        return "no Python.h (apt-get install python3-dev)"
    return (done.stderr.strip().splitlines() or [f"{program} ends with {done.returncode}"])[0]


def _bitsandbytes(device_type: devices.DeviceType) -> str:
    """Why optimizer=adamw8bit cannot be used; where there is a GPU, after one step."""
    if find_spec("bitsandbytes") is None:
        return "not installed"
    try:
        optimizers = import_module("bitsandbytes").optim
        if device_type.name == "cuda":
            weight = torch.ones(4096, device="cuda", requires_grad=True)
            weight.grad = torch.ones_like(weight)
            optimizers.AdamW8bit([weight]).step()
            torch.cuda.synchronize()
    except Exception as error:  # whatever a library that does not fit does
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _plugin(name: str, facts: PluginFacts, device_type: devices.DeviceType) -> str:
    """Why this strategy cannot be used here; empty: it can. Imports its package, and runs the checks of a job."""
    try:
        import_module(f"sdtrain.strategies.{facts.module}")
    except JobError as error:
        return error.problems[0].found
    except Exception as error:  # whatever an incompatible package does
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if device_type.name not in facts.devices:
        return f"needs a device of type {' or '.join(facts.devices)}"
    job = RunSpec.model_validate(
        {"pretrained_model_name_or_path": "-", "output_dir": "-", "recipe": "text_to_image", "plugin": name}
    )
    problems = compatibility.problems(job, devices.topology(device_type, 1))
    return "; ".join(problem.found for problem in problems)


def main() -> None:
    """Print the answers as the only line on standard output; the output of libraries goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    os.environ.setdefault("XFORMERS_MORE_DETAILS", "0")
    print(json.dumps(examine()), file=answers)


if __name__ == "__main__":
    main()
