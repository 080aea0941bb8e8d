"""How much memory a run needs on each device, at least: from the shapes of the weights and the settings. Pure.

N trained parameters in fp32 take 4N bytes, their gradients 4N, AdamW's two moments 8N, an average (EMA) 4N. Autocast
keeps half-precision copies of the weights during a pass: 2N. ZeRO divides by the number of processes W
(Rajbhandari et al. 2020, arXiv:1910.02054, section 5): low_level_zero masters, moments, average and gradients, but not
the weights that it computes with; fsdp and gemini everything. Frozen parts have the type of the computation.

Activations are what the backward pass reads again, layer by layer (`activations`). Left out: workspaces, the CUDA
context, fragmentation, what is alive only for a moment. So the truth is more than this, and never less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdjob.model import fit, trainable
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.weights import Tensor
from sdjob.settings import compatibility
from sdjob.settings.compatibility import Topology
from sdjob.settings.fields import settings_of
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec

_FP32, _HALF = 4, 2
_HEADROOM = 0.9  # share of the memory that a setting may need to be recommended
_LAYER = re.compile(
    r"(?P<side>down_blocks|mid_block|up_blocks)(?:\.(?P<number>\d+))?\.(?:"
    r"resnets\.\d+\.(?P<conv>conv1)|attentions\.\d+\.transformer_blocks\.\d+\.attn1\.to_q)\.weight"
)


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device."""

    weights: int
    gradients: int
    moments: int
    average: int
    copies: int  # of the trained weights in half precision
    frozen: int
    activations: int
    gradients_stay: bool  # from one batch to the next, so that they are there beside all activations

    @property
    def static(self) -> int:
        """What does not depend on the images, between two optimizer steps but for the gradients."""
        return self.weights + self.gradients + self.moments + self.average + self.frozen

    @property
    def total(self) -> int:
        """The largest sum at any one time: activations go as the gradients come."""
        passing = self.copies + self.activations
        peak = self.gradients + passing if self.gradients_stay else max(self.gradients, passing)
        return self.static - self.gradients + peak

    def parts(self) -> dict[str, int]:
        """Everything that takes memory, by name."""
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "moments": self.moments,
            "EMA": self.average,
            "half-precision copies": self.copies,
            "frozen parts": self.frozen,
            "activations": self.activations,
        }
        return {name: size for name, size in named.items() if size}


def estimate(spec: RunSpec, model: PipelineFolder, topology: Topology) -> Estimate | None:
    """None where the shapes of the weights are not known: of pickles."""
    count = trainable.parameters(spec, model)
    if count is None or model.denoiser.pickled:
        return None
    world = topology.world_size
    width = _width(spec, topology)
    sizes = {name: part.num_parameters for name, part in model.parts.items()}
    base = sum(
        sizes.pop(name) for name in trainable.parts(spec, model)
    )  # what is trained itself, or gets a LoRA
    still = base if spec.lora_rank else base - count
    frozen = sum(sizes.values()) + (still // world if spec.plugin == "fsdp" else still)
    share = math.ceil(count / world)
    match spec.plugin:
        case "low_level_zero":
            masters, working, gradients, copies = share, width * count, width * share, 0
        case "gemini":  # gradients take the place of the weights that it computes with
            masters, working, gradients, copies = share, width * share, 0, 0
        case "fsdp":
            masters, working, gradients = share, 0, _FP32 * share
            copies = 0 if spec.reshard_after_forward else width * count
        case _:
            masters, working, gradients = count, 0, _FP32 * count
            copies = _HALF * count if width == _HALF and not spec.lora_rank else 0
    if spec.cpu_offload or spec.placement != "cuda":  # in the memory of the host
        masters = 0
        working = 0 if spec.plugin == "gemini" else working
        gradients = 0 if spec.plugin == "fsdp" else gradients
    return Estimate(
        _FP32 * masters + working,
        gradients,
        OPTIMIZERS[spec.optimizer].state_bytes * masters,
        _FP32 * masters if spec.use_ema else 0,
        copies,
        width * frozen,
        activations(spec, model, topology),
        gradients_stay=world > 1 or spec.gradient_accumulation_steps > 1,
    )


# --- activations -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A residual block, or one block of a transformer, and how many places of the image it sees."""

    inputs: int
    width: int
    places: int
    is_transformer: bool

    def saved(self, number: int, norm: int, *, lora: bool) -> int:
        """Bytes that its backward pass reads, for one image; `number`, `norm`: bytes of a number, in a norm.

        A residual block: the inputs of two norms, of two SiLUs (as the norms leave them) and of two convolutions.
        A transformer block with its projections: the inputs of four norms; of both projections; query, key, value
        and result of self-attention and their common input; query, result and input of cross-attention; of GEGLU
        the input, both halves (8 widths), the gate (4) and the product (4). A linear layer needs its input only if
        it is trained itself, so a LoRA of the attention does without those of GEGLU (5).
        """
        if self.is_transformer:
            others = 2 + 5 + 3 + 1 + 16 - (5 if lora else 0)
            return self.places * self.width * (4 * norm + others * number)
        return self.places * (self.inputs + self.width) * (2 * norm + number)

    def kept(self, number: int, *, lora: bool) -> int:
        """Bytes that stay when the rest is computed again: its input; of a transformer also that of the norm,
        and where they are trained those of both projections, which lie outside of what is computed again."""
        inputs = (2 if lora else 4) * self.width if self.is_transformer else self.inputs
        return self.places * inputs * number


def activations(spec: RunSpec, model: PipelineFolder, topology: Topology) -> int:
    """Bytes that one batch leaves for the backward pass through the U-Net.

    With gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): the inputs of all blocks, and what the largest
    of them needs when it is computed again.
    """
    images = spec.train_batch_size * (2 if spec.with_prior_preservation else 1)
    number = _width(spec, topology)
    # Autocast computes norms in fp32, but for a CPU's.
    shards = PLUGINS[spec.plugin].shards
    norm = number if shards or topology.device == "cpu" else _FP32
    layers = list(_layers(model.denoiser.tensors, spec.resolution // fit.latent_factor(model)))
    lora = spec.lora_rank > 0
    saved = [layer.saved(number, norm, lora=lora) for layer in layers]
    if spec.gradient_checkpointing:
        return images * (sum(layer.kept(number, lora=lora) for layer in layers) + max(saved, default=0))
    return images * sum(saved)


def _width(spec: RunSpec, topology: Topology) -> int:
    """Bytes of a number in the type of the computation."""
    return _FP32 if compatibility.resolve_precision(spec, topology) == "no" else _HALF


def _layers(tensors: Mapping[str, Tensor], side: int) -> Iterator[_Layer]:
    """The blocks of the U-Net by the names of their weights; each level has half the side of the one above."""
    found = [(match, tensor.shape) for name, tensor in tensors.items() if (match := _LAYER.fullmatch(name))]
    deepest = max((int(match["number"]) for match, _ in found if match["side"] == "down_blocks"), default=0)
    for match, shape in found:
        number = int(match["number"] or 0)
        level = {"down_blocks": number, "mid_block": deepest, "up_blocks": deepest - number}[match["side"]]
        places = math.ceil(side / 2**level) ** 2
        yield _Layer(shape[1], shape[0], places, is_transformer=not match["conv"])


# --- what would fit ----------------------------------------------------------------------------------


def fitting(spec: RunSpec, model: PipelineFolder, topology: Topology, memory: int) -> list[str]:
    """Settings that would fit into this memory with some room, as they are typed; the mildest first."""
    found: list[dict[str, Any]] = []
    for change in _changes(spec):
        if any(enough.keys() <= change.keys() for enough in found):
            continue
        other = spec.model_copy(update=change)
        need = estimate(other, model, topology)
        if need and need.total <= _HEADROOM * memory and not compatibility.problems(other, topology):
            found.append(change)
    return [_typed(change) for change in found]


def _changes(spec: RunSpec) -> Iterator[dict[str, Any]]:
    """Milder ones first; what changes the result of the training comes last."""
    checkpointing: dict[str, Any] = {} if spec.gradient_checkpointing else {"gradient_checkpointing": True}
    smaller = list(_smaller_batches(spec))
    if checkpointing:
        yield checkpointing
    yield from smaller
    yield from ({**checkpointing, **batch} for batch in smaller)
    if not PLUGINS[spec.plugin].shards:
        yield from ({"plugin": plugin} for plugin, facts in PLUGINS.items() if facts.shards)
    if spec.mixed_precision == "no":
        yield {"mixed_precision": "bf16"}
    least = {**checkpointing, **(smaller[-1] if smaller else {})}
    if spec.use_ema:
        yield {**least, "use_ema": False}
    if not spec.lora_rank:
        yield {"lora_rank": 16}
        yield {**least, "lora_rank": 16}


def _smaller_batches(spec: RunSpec) -> Iterator[dict[str, Any]]:
    """Half the batch and twice the accumulation, as often as that goes, so that a step sees as many images."""
    batch, accumulation = spec.train_batch_size, spec.gradient_accumulation_steps
    while batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        yield {"train_batch_size": batch, "gradient_accumulation_steps": accumulation}


def _typed(change: Mapping[str, Any]) -> str:
    names = settings_of(RunSpec)
    return " ".join(
        f"{names[key].name or key}={int(value) if isinstance(value, bool) else value}"
        for key, value in change.items()
    )
