"""A builder for each optimizer of sdjob.settings.optimizers; libraries are imported only when chosen.

For strategies that update whole tensors with an optimizer of PyTorch's interface.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from sdtrain.strategies.base import OptimSpec

Groups = list[dict[str, Any]]

# Prodigy keeps what it learns in its groups. All other values there come from this run, not from the checkpoint.
_LEARNED = ("d", "d_max", "d_numerator", "d_denom", "d_hat", "k")
# Devices for which PyTorch has the kernel that updates all weights at once; vendors' packages may lack it.
FUSED = ("cuda", "cpu", "mps", "xpu")


def build(optim: OptimSpec, groups: Groups) -> Optimizer:
    """The optimizer of parameter groups, each of which has its own learning rate."""
    return BUILDERS[optim.name](optim, groups)


def settings_of(now: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> Groups:
    """The parameter groups to resume with: the settings of this run, and what the optimizer itself has learned."""
    return [
        {**mine, **{name: theirs[name] for name in _LEARNED if name in theirs}}
        for mine, theirs in zip(now, saved, strict=True)
    ]


def _adamw(optim: OptimSpec, groups: Groups) -> Optimizer:
    """Loshchilov & Hutter 2017, arXiv:1711.05101."""
    fused = all(parameter.device.type in FUSED for group in groups for parameter in group["params"])
    return torch.optim.AdamW(
        groups, betas=optim.betas, weight_decay=optim.weight_decay, eps=optim.epsilon, fused=fused or None
    )


def _adamw8bit(optim: OptimSpec, groups: Groups) -> Optimizer:
    """Dettmers et al. 2021, arXiv:2110.02861: the state takes a quarter of the memory."""
    import bitsandbytes

    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(
        groups, betas=optim.betas, weight_decay=optim.weight_decay, eps=optim.epsilon
    )
    return optimizer


def _adafactor(optim: OptimSpec, groups: Groups) -> Optimizer:
    """Shazeer & Stern 2018, arXiv:1804.04235: a row and a column instead of the second moment.

    Uses the given learning rate instead of computing one; AdamW's betas and epsilon have no meaning here.
    """
    from transformers.optimization import Adafactor

    optimizer: Optimizer = Adafactor(
        groups, weight_decay=optim.weight_decay, scale_parameter=False, relative_step=False
    )
    return optimizer


def _prodigy(optim: OptimSpec, groups: Groups) -> Optimizer:
    """Mishchenko & Defazio 2023, arXiv:2306.06101: finds the rate itself and multiplies it by lr, usually 1."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line when weight decay is used
        optimizer: Optimizer = Prodigy(
            groups,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            eps=optim.epsilon,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return optimizer


BUILDERS: dict[str, Callable[[OptimSpec, Groups], Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
}
