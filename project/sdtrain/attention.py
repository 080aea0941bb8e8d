"""The attention backend: what was asked for is proven to run before training begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sdjob.problem import JobError, hardware

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Inside, attention uses this backend; auto and sdpa leave the choice to PyTorch."""
    with sdpa_kernel(_BACKENDS[name]) if name in _BACKENDS else nullcontext():
        yield


def prove(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Runs the backend once; raises JobError (69) if it does not work on this device in this type."""
    if name == "xformers" and importlib.util.find_spec(name) is None:
        raise JobError(hardware("attention", "the package xformers is not installed", "Use attention=auto."))
    if name not in _BACKENDS:
        return
    query = torch.zeros(1, 2, 16, 40, device=device, dtype=dtype)
    try:
        with chosen(name):
            scaled_dot_product_attention(query, query, query)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise JobError(
            hardware("attention", f"{name} does not run here in {dtype} ({reason})", "Use attention=auto.")
        ) from None
