"""`python -m sdtrain` with all ranks on the first GPU, over gloo: NCCL refuses two ranks on one GPU."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from sdtrain import __main__ as worker
from sdtrain.runtime import devices


def _first(device_type: devices.DeviceType, _: int) -> torch.device:
    device_type.runtime.set_device(0)
    return torch.device(device_type.torch_type, 0)


if __name__ == "__main__":
    devices.DEVICE_TYPES["cuda"] = replace(devices.DEVICE_TYPES["cuda"], backend="gloo")
    devices.device_of = _first
    sys.exit(worker.main(sys.argv[1:]))
