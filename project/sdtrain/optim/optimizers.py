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
    optimizer: Optimizer = BUILDERS[optim.name](optim, groups)
    return optimizer


def groups_to_resume(now: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> Groups:
    """The parameter groups to resume with: the settings of this run, and what the optimizer itself has learned."""
    return [
        {**mine, **{name: theirs[name] for name in _LEARNED if name in theirs}}
        for mine, theirs in zip(now, saved, strict=True)
    ]


def _adamw(optim: OptimSpec, groups: Groups) -> Any:
    """Loshchilov & Hutter 2017, arXiv:1711.05101."""
    fused = all(parameter.device.type in FUSED for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **optim.adam, fused=fused or None)


def _adamw8bit(optim: OptimSpec, groups: Groups) -> Any:
    """Dettmers et al. 2021, arXiv:2110.02861: the state takes a quarter of the memory."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **optim.adam)


def _adafactor(optim: OptimSpec, groups: Groups) -> Any:
    """Shazeer & Stern 2018, arXiv:1804.04235: a row and a column instead of the second moment.

    Uses the given learning rate instead of computing one; AdamW's betas and epsilon have no meaning here.
    """
    from transformers.optimization import Adafactor

    return Adafactor(groups, weight_decay=optim.weight_decay, scale_parameter=False, relative_step=False)


def _prodigy(optim: OptimSpec, groups: Groups) -> Any:
    """Mishchenko & Defazio 2023, arXiv:2306.06101: finds the rate itself and multiplies it by lr, usually 1."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line when weight decay is used
        return Prodigy(groups, **optim.adam, use_bias_correction=True, safeguard_warmup=True)


BUILDERS: dict[str, Callable[[OptimSpec, Groups], Any]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
}
