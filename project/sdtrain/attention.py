"""The attention backend: what was asked for is proven to run before training begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sdjob.problem import JobError, hardware

# The ways to compute attention that are chosen in PyTorch itself; xformers has a call of its own.
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
    if name != "xformers" and name not in _BACKENDS:
        return
    for size in head_sizes(unet):
        if reason := failure(name, size, device, dtype):
            found = f"{name} does not run here in {dtype} with heads of {size} ({reason})"
            raise JobError(hardware("attention", found, "Use attention=auto."))


def failure(name: str, size: int, device: torch.device, dtype: torch.dtype) -> str:
    """Why this backend cannot compute heads of this size here, found by trying; empty: it can."""
    query = torch.zeros(1, 16, 2, size, device=device, dtype=dtype)
    try:
        if name == "xformers":
            import_module("xformers.ops").memory_efficient_attention(query, query, query)
        else:
            with chosen(name):
                scaled_dot_product_attention(query, query, query)
    except ImportError as error:
        return f"{name} cannot be imported: {error}"
    except (NotImplementedError, RuntimeError) as error:
        return str(error).splitlines()[0].rstrip(" :")
    return ""


def head_sizes(unet: nn.Module) -> list[int]:
    """Channels per head of all attention layers, such as 40, 80 and 160 for Stable Diffusion 1.x."""
    return sorted({m.inner_dim // m.heads for m in unet.modules() if isinstance(m, Attention)})
