"""Each attention backend at the head sizes of Stable Diffusion, against plain attention in fp32."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from sdtrain.model import attention

_HEADS = (40, 64, 80, 160)  # channels of a head in Stable Diffusion 1.x and 2.x
_BACKENDS = ("flash", "cudnn", "efficient", "xformers")


def in_process(device_type: str, seconds: float) -> list[dict[str, Any]]:
    """`rows` in another process, which may use the GPU."""
    code = f"import json; from benchmarks.gpu import attention_kernels as a; print(json.dumps(a.rows({device_type!r})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(device_type: str) -> list[dict[str, Any]]:
    """Each backend's difference from math in fp32, or why it cannot run."""
    device = torch.device(device_type)
    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    return [_row(name, size, device, dtype) for size in _HEADS for name in _BACKENDS]


def _row(name: str, size: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    row: dict[str, Any] = {"backend": name, "head": size}
    row["why_not"] = attention.failure(name, size, device, dtype)
    if row["why_not"]:
        return row
    generator = torch.Generator().manual_seed(size)
    q, k, v = (torch.randn(2, 8, 256, size, generator=generator).to(device, dtype) for _ in range(3))
    with attention.chosen("math"):
        wanted = scaled_dot_product_attention(q.float(), k.float(), v.float())
    if name == "xformers":
        from xformers.ops import memory_efficient_attention

        found = memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    else:
        with attention.chosen(name):
            found = scaled_dot_product_attention(q, k, v)
    return {**row, "off": float((found.float() - wanted).norm() / wanted.norm())}
