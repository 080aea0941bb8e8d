"""`python -m sdtrain.tools.doctor`: what PyTorch and its companions can do on this machine, as one JSON object.

Every answer comes from trying, and a refusal is kept in its own words: an empty text means that it works.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib import import_module
from typing import Any, get_args

import torch
import torch.distributed as dist

from sdjob.problems import JobError
from sdjob.settings import compatibility
from sdjob.settings.choices import Attention
from sdjob.settings.plugins import PLUGINS, PluginFacts
from sdjob.settings.run_spec import RunSpec
from sdtrain.model import attention
from sdtrain.runtime import devices

_HEAD = 40  # channels of an attention head of Stable Diffusion 1.x, the size that fewest kernels accept
_MEMORY = 2**30


def examine() -> dict[str, Any]:
    """All that is known here: torch and what it was built with, devices, backends, attention kernels."""
    device_type = devices.choose("auto")
    return {
        "torch": _torch(),
        "device": device_type.name,
        "devices": {name: device(each) for name, each in devices.DEVICE_TYPES.items()},
        "distributed": {name: _distributed(name) for name in _backends()},
        "attention": _attention(device_type),
        "plugins": {name: _plugin(name, facts, device_type) for name, facts in PLUGINS.items()},
    }


def device(device_type: devices.DeviceType) -> dict[str, Any]:
    """Whether devices of this type can be used, why not, and each one that is there."""
    why = devices.why_absent(device_type)
    found: dict[str, Any] = {"available": not why, "why": why}
    if why or device_type.name in ("cpu", "mps"):
        return found
    names = [
        str(device_type.runtime.get_device_name(index)) for index in range(device_type.runtime.device_count())
    ]
    memory = [device_type.runtime.get_device_properties(i).total_memory // _MEMORY for i in range(len(names))]
    each = [f"{name}, {size} GiB" for name, size in zip(names, memory, strict=True)]
    return {**found, "each": each, "bf16": devices.has_bf16(device_type)}


def _torch() -> dict[str, str]:
    """Versions of PyTorch and of the libraries that it was built with."""
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
        "cudnn": str(cudnn) if cudnn else "",
    }


def _backends() -> tuple[str, ...]:
    return tuple(dict.fromkeys(device_type.backend for device_type in devices.DEVICE_TYPES.values()))


def _distributed(name: str) -> str:
    """Why processes cannot talk through this backend; empty: they can, given its devices."""
    return "" if dist.is_backend_available(name) else "not part of this build of PyTorch"


def _attention(device_type: devices.DeviceType) -> dict[str, str]:
    """Each backend of attention, tried in the precision that this device trains in."""
    place = torch.device(device_type.torch_type)
    dtype = torch.float32
    if device_type.name != "cpu":
        dtype = torch.bfloat16 if devices.has_bf16(device_type) else torch.float16
    tried = [name for name in get_args(Attention) if name != "auto"]
    # PyTorch's own words for a kernel that a CPU never has speak of what was turned off.
    absent = ("cudnn", "efficient") if device_type.name == "cpu" else ()
    return {
        name: "not on this device" if name in absent else attention.failure(name, _HEAD, place, dtype)
        for name in tried
    }


def _plugin(name: str, facts: PluginFacts, device_type: devices.DeviceType) -> str:
    """Why this strategy cannot be used here; empty: it can. Its package is really imported, and the rest is what
    the check of a job would say."""
    try:
        import_module(f"sdtrain.strategies.{facts.module}")
    except JobError as error:
        return error.problems[0].found
    except Exception as error:  # whatever a package of another time does beside this PyTorch
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if device_type.name not in facts.devices:
        return f"needs a device of type {' or '.join(facts.devices)}"
    job = RunSpec.model_validate(
        {
            "pretrained_model_name_or_path": "any",
            "output_dir": "any",
            "recipe": "text_to_image",
            "plugin": name,
        }
    )
    return "; ".join(
        problem.found for problem in compatibility.problems(job, devices.topology(device_type, 1))
    )


def main() -> None:
    """Prints the answers as the only line on standard output; libraries may print what they like."""
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    os.environ.setdefault("XFORMERS_MORE_DETAILS", "0")
    print(json.dumps(examine()), file=answers)


if __name__ == "__main__":
    main()
