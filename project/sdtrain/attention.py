"""The attention backend: what was asked for is proven to run before training begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
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


def prove(name: str, unet: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Runs the backend once at each head size of the U-Net; raises JobError (69) if it does not work here.

    Only the U-Net is trained with it: the VAE's one head of 512 channels is too wide for most backends.
    """
    if name == "xformers" and importlib.util.find_spec(name) is None:
        raise JobError(hardware("attention", "the package xformers is not installed", "Use attention=auto."))
    if name not in _BACKENDS:
        return
    for size in head_sizes(unet):
        query = torch.zeros(1, 2, 16, size, device=device, dtype=dtype)
        try:
            with chosen(name):
                scaled_dot_product_attention(query, query, query)
        except RuntimeError as error:
            found = f"{name} does not run here in {dtype} with heads of {size} ({str(error).splitlines()[0]})"
            raise JobError(hardware("attention", found, "Use attention=auto.")) from None


def head_sizes(unet: nn.Module) -> list[int]:
    """Channels per head of all attention layers, such as 40, 80 and 160 for Stable Diffusion 1.x."""
    return sorted({m.inner_dim // m.heads for m in unet.modules() if isinstance(m, Attention)})
