"""The attention backends: those that were asked for are proven to compute right before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sdjob.problems import JobError, no_hardware

_XFORMERS = "xformers"
_BACKENDS = {  # of PyTorch
    "flash": SDPBackend.FLASH_ATTENTION,
    "fa4": SDPBackend.FLASH_ATTENTION,  # another kernel behind the same backend
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Of the norm of outputs and gradients; types of half precision round each of them to 0.05 or 0.4 %.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_SIDE, _TOKENS = 64, 77  # of the latents at 512 pixels, and of a prompt
_LEVELS = 4  # of a U-Net, each of half the side
_MOST_POSITIONS, _ALIGNMENT = 1024, 128
_CUDNN = (9, 15, 1)  # the first that is right for every length (pytorch/pytorch#169849)


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Inside, attention uses this backend, or of several the first that takes the sizes of a layer.

    auto and sdpa leave the choice to PyTorch.
    """
    names = _usable(name)
    if next((each for each in names if each in ("flash", "fa4")), "") == "fa4":
        _activate_fa4()
    backends = [_BACKENDS[each] for each in names]
    with sdpa_kernel(backends, set_priority=True) if backends else nullcontext():
        yield


def left_out(name: str) -> dict[str, str]:
    """The backends of a list that are not used here, whatever the sizes → why."""
    reasons = {}
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    needed = ".".join(map(str, _CUDNN))
    if version and version < _CUDNN[0] * 10_000 + _CUDNN[1] * 100 + _CUDNN[2]:
        found = f"{version // 10_000}.{version // 100 % 100}.{version % 100}"
        reasons["cudnn"] = (
            f"cuDNN {found} is below {needed}, the first that is right for lengths that are not a "
            f"multiple of {_ALIGNMENT}, such as the {_TOKENS} tokens of a prompt"
        )
    if "fa4" in name.split(",") and (reason := why_not_fa4()):
        reasons["fa4"] = reason
    return {each: reasons[each] for each in name.split(",") if each in reasons}


def _usable(name: str) -> list[str]:
    """The backends of PyTorch in a list that can be used here; none of auto, sdpa and xformers."""
    absent = left_out(name)
    return [each for each in name.split(",") if each in _BACKENDS and each not in absent]


@cache
def why_not_fa4() -> str:
    """Why FlashAttention 4 cannot be used, apart from the proof before training; empty: it can."""
    try:
        if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
            return "flash-attn-4 is not installed (pip install -r docker/requirements-fa4.txt)"
        if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
            return "FlashAttention 4 needs PyTorch 2.10"
        if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] not in (9, 10):
            return "FlashAttention 4 needs a Hopper or Blackwell data centre GPU"
        import_module("flash_attn.cute")
    except Exception as error:  # whatever a beta does
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


@cache
def _activate_fa4() -> None:
    """For the rest of the process: PyTorch has one flash backend."""
    torch.nn.attention.activate_flash_attention_impl("FA4")


def prove(
    name: str, denoiser: nn.Module, device: torch.device, dtype: torch.dtype, side: int = _SIDE
) -> None:
    """Compute with the backends once at each head size of the denoiser, and at the lengths of latents of this side.

    Raises JobError (69) if no backend of the list takes a size, or the one that does computes wrong. The VAE does not
    use them: its one head of 512 channels is too wide for most backends.
    """
    if name != _XFORMERS and not set(name.split(",")) & set(_BACKENDS):
        return
    for size in head_sizes(denoiser):
        if reason := failure(name, size, device, dtype, side):
            found = f"{name} does not run here in {dtype} with heads of {size} ({reason})"
            remedy = "Use attention=auto, or more backends by priority: attention=cudnn,flash,efficient,math."
            raise JobError(no_hardware("attention", found, remedy))


def positions(side: int) -> list[int]:
    """The lengths at which a denoiser attends to latents of this side, one for each level, the largest first.

    Above 1024, which even plain attention on a CPU computes in a fraction of a second, a length becomes 1024 and its
    remainder of 128: how a kernel fills its last tile is what goes wrong. Buckets of other shapes are not tried.
    """
    squares = [max(1, -(-side // 2**level)) ** 2 for level in range(_LEVELS)]
    capped = [n if n <= _MOST_POSITIONS else _MOST_POSITIONS + n % _ALIGNMENT for n in squares]
    return list(dict.fromkeys(capped))


def failure(name: str, size: int, device: torch.device, dtype: torch.dtype, side: int = _SIDE) -> str:
    """Why these backends cannot train heads of this size here, found by trying; empty: they can.

    Forward and backward, since some have no backward pass, on random data against plain attention in fp32; with keys of
    the image and of a prompt, whose length is odd.
    """
    if (absent := left_out(name)) and not _usable(name):
        return "; ".join(absent.values())
    try:
        for queries in positions(side):
            for keys in (queries, _TOKENS):
                noise = torch.Generator().manual_seed(keys)
                lengths = (queries, keys, keys)
                inputs = [torch.randn(1, 2, n, size, generator=noise).to(device, dtype) for n in lengths]
                found = _attended(name, inputs)
                wanted = _attended("math", [each.float() for each in inputs])
                error = float((found - wanted).norm() / wanted.norm())
                if not error <= _TOLERANCES[dtype]:
                    return f"its results and gradients differ from those in fp32 by {error:.1%}"
    except ImportError as error:
        return f"{name} cannot be imported: {error}"
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        return (str(error) or type(error).__name__).splitlines()[0].rstrip(" :")
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
    """The backend that computes: the one that was asked for, or PyTorch's choice of those for the denoiser's heads.

    Such as "flash", or "flash (40, 80), math (160)" where the choice depends on the size of the heads. It is that of
    self-attention at many positions, where the time goes.
    """
    usable = _usable(name)
    if name == _XFORMERS or len(usable) == 1:
        return usable[0] if usable else name
    listed = usable or [each for each in _BACKENDS if each != "fa4"]
    names = {int(_BACKENDS[each]): each for each in reversed(listed)}  # type: ignore[call-overload]
    sizes: dict[str, list[int]] = {}
    for size in head_sizes(denoiser):
        query = torch.zeros(1, 2, _MOST_POSITIONS, size, device=device, dtype=dtype, requires_grad=True)
        with chosen(name):
            choice = names.get(torch._fused_sdp_choice(query, query, query), "math")
        sizes.setdefault(choice, []).append(size)
    if len(sizes) == 1:
        return next(iter(sizes))
    return ", ".join(f"{each} ({', '.join(map(str, heads))})" for each, heads in sizes.items())


def head_sizes(denoiser: nn.Module) -> list[int]:
    """Channels per head of all attention layers, such as 40, 80 and 160 for Stable Diffusion 1.x."""
    layers = (m for m in denoiser.modules() if hasattr(m, "heads") and hasattr(m, "inner_dim"))
    return sorted({int(layer.inner_dim) // int(layer.heads) for layer in layers})  # type: ignore[arg-type]
