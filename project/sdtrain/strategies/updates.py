"""What updates the masters, given the gradient of each bucket: AdamW on flat tensors, or any optimizer on views.

Either has an optimizer of PyTorch whose parameters are views of the masters, and saves its state by the names of the
parameters of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from sdjob.settings.optimizers import OPTIMIZERS
from sdtrain.checkpoint import state_io
from sdtrain.optim import optimizers
from sdtrain.strategies.base import OptimSpec
from sdtrain.strategies.flat import Flat, named
from sdtrain.strategies.shards import whole

Flats = Mapping[str, Flat]  # by the prefix of their group
Groups = list[dict[str, Any]]


class FlatAdam:
    """The parameters of the optimizer are the buckets of the masters.

    `tables`: flat tensors by table and group, as in state_io.tables.
    """

    def __init__(self, optim: OptimSpec, flats: Flats) -> None:
        self._flats = flats
        self._moments = {
            key: {name: torch.zeros_like(flat.master) for name, flat in flats.items()}
            for key in state_io.ADAM_STATE
        }
        groups = _groups(optim, flats, lambda flat: flat.by_bucket(flat.master))
        self._buckets = [bucket for group in groups for bucket in group["params"]]
        self.optimizer = optimizers.build(optim, groups)
        moments = {
            key: [part for name, flat in flats.items() for part in flat.by_bucket(of[name])]
            for key, of in self._moments.items()
        }
        fused = self.optimizer.defaults["fused"]
        for index, bucket in enumerate(self._buckets):
            step = torch.zeros((), device=bucket.device if fused else "cpu")  # where AdamW itself has it
            state = {key: parts[index] for key, parts in moments.items()}
            self.optimizer.state[bucket] = {"step": step, **state}

    def give(self, gradients: Sequence[torch.Tensor]) -> None:
        """Hand the gradients of all buckets to the optimizer."""
        for bucket, gradient in zip(self._buckets, gradients, strict=True):
            bucket.grad = gradient

    def tables(self) -> state_io.Tables:
        """The state that consists of flat tensors."""
        return self._moments

    def state(self, tables: state_io.Tables, *, copied: bool) -> dict[str, Any]:
        """The state dictionary, by the index of each parameter, with these tables in it; of the rest copies."""
        step = self.optimizer.state[self._buckets[0]]["step"].to("cpu", copy=True)
        views = {key: named(self._flats, tables[key]) for key in self._moments}
        names = [slot.name for flat in self._flats.values() for slot in flat.slots]
        states = {
            index: {"step": step, **{key: of[name] for key, of in views.items()}}
            for index, name in enumerate(names)
        }
        indices = iter(range(len(names)))
        groups = [
            {**group, "params": [next(indices) for _ in flat.slots]}
            for group, flat in zip(self.optimizer.param_groups, self._flats.values(), strict=True)
        ]
        return {"state": states, "param_groups": groups}

    def load(self, folder: Path, tables: state_io.Tables) -> Mapping[str, Any]:
        """Restore the tables and the state; returns that of the fp16 loss scaler."""
        views = {key: named(self._flats, of) for key, of in tables.items()}
        ranges = {name: whole(view.shape) for name, view in views["master"].items()}
        numbers = state_io.load(folder, views, ranges)
        for state in self.optimizer.state.values():
            state["step"].fill_(numbers.updates)
        return numbers.scaler


class ByParameter:
    """The parameters of the optimizer are those of the model, in fp32."""

    def __init__(self, optim: OptimSpec, flats: Flats) -> None:
        self._flats = flats
        self.optimizer = optimizers.build(optim, _groups(optim, flats, lambda f: f.named(f.master).values()))

    def give(self, gradients: Sequence[torch.Tensor]) -> None:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        buckets = (bucket for flat in self._flats.values() for bucket in flat.buckets)
        for bucket, gradient in zip(buckets, gradients, strict=True):
            for slot in bucket.slots:
                next(parameters).grad = slot.of(gradient, bucket.start)

    def tables(self) -> state_io.Tables:
        return {}

    def state(self, tables: state_io.Tables, *, copied: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        if copied:
            state = tree_map_only(torch.Tensor, _on_host, state)
        return state

    def load(self, folder: Path, tables: state_io.Tables) -> Mapping[str, Any]:
        for key, tensors in tables.items():
            state_io.read_weights(folder, named(self._flats, tensors), ema=key == "ema")
        saved = state_io.read_optimizer(folder)
        state = saved["optimizer"]
        now = self.optimizer.state_dict()["param_groups"]
        groups = optimizers.groups_to_resume(now, state["param_groups"])
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        scaler: Mapping[str, Any] = saved["scaler"]
        return scaler


def create(optim: OptimSpec, flats: Flats) -> FlatAdam | ByParameter:
    """AdamW on flat tensors where each value is updated by itself, otherwise parameter by parameter."""
    return FlatAdam(optim, flats) if OPTIMIZERS[optim.name].adam_state else ByParameter(optim, flats)


def _groups(optim: OptimSpec, flats: Flats, views: Callable[[Flat], Iterable[torch.Tensor]]) -> Groups:
    """The parameter groups of an optimizer, each with `base_lr`, its learning rate before the schedule."""
    rates = {group.prefix: group.learning_rate for group in optim.groups}
    return [
        {"params": [nn.Parameter(view) for view in views(flat)], "lr": rates[name], "base_lr": rates[name]}
        for name, flat in flats.items()
    ]


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
