"""Memory and disk space that a run needs at least, from the shapes of the weights and the settings. Pure.

N trainable parameters in fp32 take 4N bytes, their gradients 4N, AdamW's state 8N, an EMA 4N. Half-precision copies of
the weights take 2N: with weights_dtype=bf16 always, otherwise those of autocast during a pass. ZeRO divides by the
number of processes W (Rajbhandari et al. 2020, arXiv:1910.02054, section 5): low_level_zero divides masters, optimizer
state, EMA and gradients, but not the weights that it computes with; fsdp and gemini divide everything. Frozen parts
have the type of the computation.

Activations are what the backward pass reads again, layer by layer (`activations`). Left out: workspaces, the CUDA
context, fragmentation, short-lived tensors. So a run takes more than this, and never less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sdjob.automatic import weights_dtype
from sdjob.formatting import in_units
from sdjob.model import trainable
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.vae import encoded_at_once
from sdjob.model.weights import Tensor
from sdjob.settings import compatibility, steps
from sdjob.settings.choices import CACHED
from sdjob.settings.compatibility import Topology
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec

_FP32, _HALF = 4, 2
# Bytes in a checkpoint of a parameter: its fp32 weight, EMA and optimizer state, several times; and of all the rest.
_MOST_STATE, _OTHER_STATE = 64, 1 << 30

# --- memory of a device ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device."""

    weights: int
    gradients: int
    optimizer_state: int
    ema: int
    copies: int  # copies of the trainable weights in half precision
    frozen: int
    activations: int
    encoding: int  # for a moment, before there are activations
    gradients_stay: bool  # from one batch to the next, so that they take memory alongside all activations

    @property
    def static(self) -> int:
        """What does not depend on the images."""
        return self.weights + self.gradients + self.optimizer_state + self.ema + self.frozen

    @property
    def total(self) -> int:
        """The largest sum at any one time."""
        return self.static - self.gradients + max(self._step, self.encoding)

    @property
    def _step(self) -> int:
        """What a step needs besides: activations go as the gradients come."""
        passing = self.copies + self.activations
        return self.gradients + passing if self.gradients_stay else max(self.gradients, passing)

    def __str__(self) -> str:
        """weights 3.44 GB + gradients 3.44 GB + …"""
        named = {"weights": self.weights, "optimizer state": self.optimizer_state, "EMA": self.ema}
        named["frozen parts"] = self.frozen
        if self.encoding > self._step:
            named["encoding of images"] = self.encoding
        else:
            named["gradients"] = self.gradients
            named["half-precision copies"] = self.copies
            named["activations"] = self.activations
        return " + ".join(f"{name} {in_units(size)}" for name, size in named.items() if size)


def estimate(spec: RunSpec, model: PipelineFolder, topology: Topology) -> Estimate | None:
    """None where the shapes of the weights are not known: of pickles."""
    count = trainable.parameters(spec, model)
    if count is None or model.denoiser.pickled:
        return None
    world = topology.world_size
    width = compatibility.width(spec, topology)
    sizes = {name: part.num_parameters for name, part in model.parts.items()}
    base = sum(sizes.pop(name) for name in trainable.parts(spec, model))  # trainable, or with a LoRA
    untrained = base if spec.lora_rank else base - count
    leaving = _leaving(spec, model, width)
    vae = sizes["vae"] if model.architecture.vae_in_fp32 else 0
    frozen = width * sum(sizes.values()) + (_FP32 - width) * vae - leaving
    frozen += width * (untrained // world if spec.plugin == "fsdp" else untrained)
    shard = math.ceil(count / world)
    match spec.plugin:
        case "low_level_zero":
            masters, working, gradients, copies = shard, width * count, width * shard, 0
        case "gemini":  # gradients replace the weights that it computes with
            masters, working, gradients, copies = shard, width * shard, 0, 0
        case "fsdp":
            masters, working, gradients = shard, 0, _FP32 * shard
            copies = 0 if spec.reshard_after_forward else width * count
        case _:
            masters, gradients = count, _FP32 * count
            casts = width == _HALF and not spec.lora_rank
            stay = weights_dtype.choose(spec, topology).value == "bf16"
            working = _HALF * count if casts and stay else 0
            copies = _HALF * count if casts and not stay else 0
    if spec.cpu_offload or spec.placement != "cuda":  # in the memory of the host
        masters = 0
        working = 0 if spec.plugin == "gemini" else working
        gradients = 0 if spec.plugin == "fsdp" else gradients
    state = OPTIMIZERS[spec.optimizer].state_bytes * masters
    ema = _FP32 * masters if spec.use_ema else 0
    encoded = encoding(spec, model, topology)
    if spec.cache_latents in CACHED:  # before there is any of these
        encoded = max(0, encoded + leaving - state - ema)
    return Estimate(
        _FP32 * masters + working,
        gradients,
        state,
        ema,
        copies,
        frozen,
        activations(spec, model, topology),
        encoded,
        gradients_stay=world > 1 or spec.gradient_accumulation_steps > 1,
    )


def _leaving(spec: RunSpec, model: PipelineFolder, width: int) -> int:
    """Bytes of the frozen parts that are not on the device in steps, since all that they would encode is cached."""
    cached = [(spec.cache_latents, ["vae"])]
    cached.append((spec.cache_text_embeddings, list(model.architecture.text_encoders)))
    names = [name for where, parts in cached if where in CACHED for name in parts]
    fp32 = {"vae"} if model.architecture.vae_in_fp32 else set()
    return sum((_FP32 if name in fp32 else width) * model.parts[name].num_parameters for name in names)


# --- activations -------------------------------------------------------------------------------------

_LAYER = re.compile(  # a level of more digits has no model, and halving an image as often takes all memory
    r"(?P<side>down_blocks|mid_block|up_blocks)(?:\.(?P<number>\d{1,3}))?\.(?:"
    r"resnets\.\d+\.(?P<residual>conv1)|attentions\.\d+\.(?:"
    r"(?P<projections>proj_in)|transformer_blocks\.\d+\.(?P<transformer>attn1\.to_q)))\.weight"
)


@dataclass(frozen=True)
class _Layer:
    """A residual block, a block of a transformer, or the projections around its blocks; and how many positions of the
    latent it computes."""

    kind: str  # residual, transformer or projections
    inputs: int
    width: int
    positions: int
    is_linear: bool  # not a convolution

    def saved(self, number: int, norm: int, *, lora: bool) -> int:
        """Bytes that its backward pass reads, for one image; `number`, `norm`: bytes of a number, in a norm.

        A residual block: the inputs of two norms, of two SiLUs (as the norms leave them), of two convolutions, and of
        that around them where the widths differ. Projections: the inputs of the norm and of both.
        A block of a transformer: the inputs of three norms; of self-attention query, key, value and result, and the
        input of each of the three, since autocast casts it for each; of cross-attention query, result and input; of
        GEGLU the input, both halves (8 widths), the gate (4) and the product (4).
        A frozen linear layer does not need its input, so a LoRA of the attention does without many; a convolution
        keeps it all the same.
        """
        match self.kind:
            case "residual":
                around = self.inputs if self.inputs != self.width else 0
                size = 2 * norm * (self.inputs + self.width) + number * (self.inputs + self.width + around)
            case "transformer":
                casts = 3 if norm > number else 1
                size = self.width * (3 * norm + number * (casts + 4 + 3 + (12 if lora else 17)))
            case _:
                size = self.width * (norm + (0 if lora and self.is_linear else 2 * number))
        return self.positions * size

    def kept(self, number: int, norm: int, *, lora: bool) -> int:
        """Bytes that stay when the rest is computed again: the input of a block. Projections are not computed again."""
        if self.kind == "projections":
            return self.saved(number, norm, lora=lora)
        return self.positions * number * (self.width if self.kind == "transformer" else self.inputs)


def activations(spec: RunSpec, model: PipelineFolder, topology: Topology) -> int:
    """Bytes that one batch leaves for the backward pass through the U-Net.

    With gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): the inputs of all blocks, and what the largest
    of them needs when it is computed again.
    """
    number = compatibility.width(spec, topology)
    # Autocast computes norms in fp32, except on a CPU; without it they have the type of the weights.
    as_weights = PLUGINS[spec.plugin].shards or weights_dtype.choose(spec, topology).value == "bf16"
    norm = number if as_weights or topology.device == "cpu" else _FP32
    layers = list(_layers(model.denoiser.tensors, spec.resolution // model.latent_factor))
    lora = spec.lora_rank > 0
    saved = [layer.saved(number, norm, lora=lora) for layer in layers]
    if spec.gradient_checkpointing:
        kept = sum(layer.kept(number, norm, lora=lora) for layer in layers)
        return steps.images_of_batch(spec) * (kept + max(saved, default=0))
    return steps.images_of_batch(spec) * sum(saved)


def _layers(tensors: Mapping[str, Tensor], side: int) -> Iterator[_Layer]:
    """The blocks of the U-Net by the names of their weights; each level has half the side of the one above."""
    matrices = ((name, tensor.shape) for name, tensor in tensors.items() if len(tensor.shape) > 1)
    found = [(match, shape) for name, shape in matrices if (match := _LAYER.fullmatch(name))]
    deepest = max((int(match["number"]) for match, _ in found if match["side"] == "down_blocks"), default=0)
    for match, shape in found:
        number = int(match["number"] or 0)
        level = {"down_blocks": number, "mid_block": deepest, "up_blocks": deepest - number}[match["side"]]
        kind = next(kind for kind in ("residual", "transformer", "projections") if match[kind])
        yield _Layer(kind, shape[1], shape[0], math.ceil(side / 2**level) ** 2, len(shape) == 2)


_OF_VAE = 5  # tensors of the first level of the VAE that are there at once


def encoding(spec: RunSpec, model: PipelineFolder, topology: Topology) -> int:
    """Bytes that the VAE takes for a moment to encode a batch, in parts; for a cache, the largest part."""
    vae = model.parts["vae"].config
    channels = int((vae.get("block_out_channels") or (128,))[0])
    number = _FP32 if model.architecture.vae_in_fp32 else compatibility.width(spec, topology)
    at_once = encoded_at_once(spec.resolution, spec.resolution)
    images = at_once if spec.cache_latents in CACHED else min(at_once, steps.images_of_batch(spec))
    return images * _OF_VAE * number * channels * spec.resolution**2


# --- checkpoints and the result ----------------------------------------------------------------------

_LORA_LAYOUTS = 2  # diffusers' and kohya's


@dataclass(frozen=True)
class OutputSizes:
    """Bytes of one step checkpoint, and of the result."""

    checkpoint: int
    result: int


def output_sizes(spec: RunSpec, model: PipelineFolder) -> OutputSizes | None:
    """None where the shapes of the weights are not known: a LoRA of pickled weights."""
    count = trainable.parameters(spec, model)
    if count is None:
        return None
    ema = _FP32 if spec.use_ema else 0
    checkpoint = (_FP32 + OPTIMIZERS[spec.optimizer].state_bytes + ema) * count
    width = _FP32 if spec.export_dtype == "fp32" else _HALF
    if spec.lora_rank:
        return OutputSizes(checkpoint, _LORA_LAYOUTS * width * count)
    changed = trainable.parts(spec, model)
    bytes_of = (
        part.num_bytes if width == _FP32 and name not in changed else width * part.num_parameters
        for name, part in model.parts.items()
    )
    files = 2 if spec.export_single_file else 1
    return OutputSizes(checkpoint, files * sum(bytes_of))


def largest_checkpoint(model: PipelineFolder) -> float:
    """Bytes that no checkpoint of a run with a model like this exceeds, whatever is trained and by what optimizer."""
    return _MOST_STATE * sum(part.num_parameters for part in model.parts.values()) + _OTHER_STATE


def checkpoints_kept(spec: RunSpec) -> int:
    """Checkpoints that are there at the end of the whole run."""
    made = math.ceil(spec.max_train_steps / spec.checkpointing_steps)
    return min(made, spec.checkpoints_total_limit or made)


def checkpoints_to_come(spec: RunSpec, existing: Sequence[int]) -> int:
    """By how many checkpoints the output folder grows at most, given the steps of those that the run continues.

    A new one is complete before the oldest beyond the limit is deleted. What is not continued is kept alongside.
    """
    continued = [] if spec.resume == "never" else existing
    every = spec.checkpointing_steps
    to_come = max(0, math.ceil(spec.max_train_steps / every) - max(continued, default=0) // every)
    if spec.checkpoints_total_limit is None:
        return to_come
    return min(to_come, max(1, spec.checkpoints_total_limit + 1 - len(continued)))
