"""The attention backend: the one that was asked for is proven to run before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sdjob.problems import JobError, no_hardware

_XFORMERS = "xformers"
_BACKENDS = {  # of PyTorch
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Of the norm of outputs and gradients; types of half precision round each of them to 0.05 or 0.4 %.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_POSITIONS, _TOKENS = 64, 77  # of the smallest level of a U-Net at 512 pixels, and of a prompt


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Inside, attention uses this backend; auto and sdpa leave the choice to PyTorch."""
    with sdpa_kernel(_BACKENDS[name]) if name in _BACKENDS else nullcontext():
        yield


def prove(name: str, denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Run the backend once at each head size of the denoiser. Raises JobError (69) if it does not work here.

    The VAE does not use it: its one head of 512 channels is too wide for most backends.
    """
    if name != _XFORMERS and name not in _BACKENDS:
        return
    for size in head_sizes(denoiser):
        if reason := failure(name, size, device, dtype):
            found = f"{name} does not run here in {dtype} with heads of {size} ({reason})"
            raise JobError(no_hardware("attention", found, "Use attention=auto."))


def failure(name: str, size: int, device: torch.device, dtype: torch.dtype) -> str:
    """Why this backend cannot train heads of this size here, found by trying; empty: it can.

    Forward and backward, since some have no backward pass, on random data against plain attention in fp32; with keys of
    an image and of a prompt, whose length is odd.
    """
    try:
        for length in (_POSITIONS, _TOKENS):
            noise = torch.Generator().manual_seed(length)
            lengths = (_POSITIONS, length, length)
            inputs = [torch.randn(1, 2, n, size, generator=noise).to(device, dtype) for n in lengths]
            found = _attended(name, inputs)
            wanted = _attended("math", [each.float() for each in inputs])
            error = float((found - wanted).norm() / wanted.norm())
            if not error <= _TOLERANCES[dtype]:
                return f"its results and gradients differ from those in fp32 by {error:.1%}"
    except ImportError as error:
        return f"{name} cannot be imported: {error}"
    except (NotImplementedError, RuntimeError) as error:
        return str(error).splitlines()[0].rstrip(" :")
    return ""


def _attended(name: str, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The output and the gradients of query, key and value [1, 2, length, size], in fp32, one after the other."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    if name == _XFORMERS:
        attend = import_module("xformers.ops").memory_efficient_attention
        output = attend(*(leaf.transpose(1, 2) for leaf in leaves)).transpose(1, 2)
    else:
        with chosen(name):
            query, key, value = leaves
            output = scaled_dot_product_attention(query, key, value)
    with chosen(name):
        results = (output, *torch.autograd.grad(output.square().sum(), leaves))
    return torch.cat([each.detach().float().flatten() for each in results])


def running(name: str, denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that computes: the one that was asked for, or PyTorch's choice for the denoiser's heads.

    Such as "flash", or "flash (40, 80), math (160)" where the choice depends on the size of the heads.
    """
    if name == _XFORMERS or name in _BACKENDS:
        return name
    names = {int(backend): each for each, backend in _BACKENDS.items()}  # type: ignore[call-overload]
    sizes: dict[str, list[int]] = {}
    for size in head_sizes(denoiser):
        query = torch.zeros(1, 2, _POSITIONS, size, device=device, dtype=dtype, requires_grad=True)
        choice = names.get(torch._fused_sdp_choice(query, query, query), "math")
        sizes.setdefault(choice, []).append(size)
    if len(sizes) == 1:
        return next(iter(sizes))
    return ", ".join(f"{each} ({', '.join(map(str, heads))})" for each, heads in sizes.items())


def head_sizes(denoiser: nn.Module) -> list[int]:
    """Channels per head of all attention layers, such as 40, 80 and 160 for Stable Diffusion 1.x."""
    layers = (m for m in denoiser.modules() if hasattr(m, "heads") and hasattr(m, "inner_dim"))
    return sorted({int(layer.inner_dim) // int(layer.heads) for layer in layers})  # type: ignore[arg-type]
