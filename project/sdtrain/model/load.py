"""Load a pipeline, and make of it what a run trains: which parts are frozen, and in what type."""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from sdjob.files import shown
from sdjob.model import trainable as trainable_parts
from sdjob.model.key_names import current_name
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.weights import COPY_AGAIN, Part
from sdjob.output.layout import INDEX_FILE
from sdjob.problems import JobError, bad_input
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures import ARCHITECTURES
from sdtrain.architectures.base import Parts
from sdtrain.model import lora as lora_layers
from sdtrain.model.trainable_model import TrainableModel
from sdtrain.runtime import devices, heartbeat

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_LONGEST_REASON = 300  # characters of a library's words


def load(
    folder: PipelineFolder,
    precision: str,
    device: torch.device,
    *,
    allow_pickle: bool,
    lora: bool = False,
    train_text_encoder: bool = False,
    zero_snr: bool = False,
) -> Parts:
    """Read the pipeline from disk; only safetensors, unless pickles are allowed.

    Trained parts are fp32, or `precision` where only a LoRA of them is trained; all others are `precision`.
    zero_snr: rescale the noise schedules to end in pure noise.
    """
    dtype = DTYPES[precision]
    transformers.utils.logging.disable_progress_bar()
    architecture = ARCHITECTURES[folder.class_name]
    facts = architecture.facts

    num_loaded = itertools.count(1)

    def part(name: str, dtype: torch.dtype) -> Any:
        loaded = _loaded(folder, name, dtype, allow_pickle=allow_pickle).to(device)
        _check_finite(folder.parts[name], loaded)
        count(next(num_loaded), len(facts.text_encoders) + 2)
        return loaded.requires_grad_(False).eval()

    trained = dtype if lora else torch.float32
    of_text = trained if train_text_encoder else dtype
    with heartbeat.working("load") as count:
        text_encoders = {name: part(name, of_text) for name in facts.text_encoders}
        with _reading(folder.path / "scheduler"):
            process, sampler = architecture.schedulers(folder.path / "scheduler", zero_snr=zero_snr)
        return Parts(
            architecture=architecture,
            denoiser=part(facts.denoiser, trained),
            vae=_laid_out(part("vae", torch.float32 if facts.vae_in_fp32 else dtype), device),
            text_encoders=text_encoders,
            tokenizers={
                name: _tokenizer(folder, tokenizer, text_encoders[name])
                for name, tokenizer in facts.text_encoders.items()
            },
            process=process,
            sampler=sampler,
            dtype=dtype,
            device=device,
            index=json.loads((Path(folder.path) / INDEX_FILE).read_text()),
        )


def _laid_out(frozen: Any, device: torch.device) -> Any:
    """Strategies lay out what is trained."""
    return frozen.to(memory_format=torch.channels_last) if device.type in devices.CHANNELS_LAST else frozen


def _loaded(folder: PipelineFolder, name: str, dtype: torch.dtype, *, allow_pickle: bool) -> Any:
    part = folder.parts[name]
    with _reading(part.folder):
        return _class_of(folder, name).from_pretrained(
            part.folder,
            torch_dtype=dtype,
            variant=part.variant,
            use_safetensors=None if allow_pickle else True,
            local_files_only=True,
        )


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Raise JobError (66) for what a library says of the content of a folder."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        found = f"cannot be loaded ({reason[:_LONGEST_REASON]})"
        raise JobError(bad_input(shown(folder), found, COPY_AGAIN)) from error


def _check_finite(part: Part, module: nn.Module) -> None:
    """Raise JobError (66) if weights are NaN or infinite: they would spread through every step."""
    weights = {name: weight for name, weight in module.named_parameters() if weight.is_floating_point()}
    finite = torch.stack([torch.isfinite(weight).all() for weight in weights.values()]).tolist()
    broken = [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]
    if not broken:
        return
    files = {current_name(name): tensor.file for name, tensor in part.tensors.items()}
    file = files.get(current_name(broken[0]), part.folder)
    others = f" and {len(broken) - 1} more hold" if len(broken) > 1 else " holds"
    in_type, remedy = "", "download or copy this file again, or use another model"
    if weights[broken[0]].dtype == torch.float16:
        in_type, remedy = (
            " in fp16",
            f"{remedy}; or set mixed_precision=bf16, if they are only too large for fp16",
        )
    found = f"{broken[0]}{others} NaN or infinite values{in_type}"
    raise JobError(bad_input(shown(file), found, remedy))


def _class_of(folder: PipelineFolder, name: str) -> Any:
    component = folder.architecture.components[name]
    return getattr(import_module(component.library), component.classes[0])


def _tokenizer(folder: PipelineFolder, name: str, encoder: Any) -> Any:
    """A tokenizer that knows the length of its encoder's input: one without a config takes any length."""
    with _reading(folder.path / name):
        tokenizer = _class_of(folder, name).from_pretrained(
            folder.path, subfolder=name, local_files_only=True
        )
    length = getattr(encoder.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    return tokenizer


def make_trainable(parts: Parts, spec: RunSpec) -> TrainableModel:
    """Make what the run trains require gradients, in fp32: the denoiser and text encoders, or a LoRA of each.

    Parameters that get no gradient in any step stay frozen: a rank that waited for one would wait forever.
    """
    text_encoders = parts.text_encoders if spec.train_text_encoder else {}
    model = TrainableModel(parts.architecture, parts.denoiser, text_encoders)
    idle = {name: _idle(parts, name) for name in text_encoders}
    if spec.lora_rank:
        lora_layers.add(parts, spec, idle)
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()  # bf16 weights would not move at the rates of a LoRA
    else:
        model.requires_grad_(True)
        for name, encoder in text_encoders.items():
            for module in idle[name]:
                encoder.get_submodule(module).requires_grad_(False)
    if spec.gradient_checkpointing:
        parts.denoiser.enable_gradient_checkpointing()
        for encoder in text_encoders.values():
            # Not the reentrant form, which needs an input that requires a gradient: token ids never do.
            encoder.activation_checkpointing_enable({"use_reentrant": False})
    if spec.attention == "xformers":
        parts.denoiser.enable_xformers_memory_efficient_attention()
    return model.train()


def _idle(parts: Parts, name: str) -> list[str]:
    """The modules of a text encoder that get no gradient, each with all that are below it."""
    encoder = parts.text_encoders[name]
    layers = encoder.config.num_hidden_layers
    prefixes = trainable_parts.idle(parts.architecture.facts, name, layers)
    names = [name for name, _ in encoder.named_modules()]
    return [name for name in names if f"{name.removeprefix('text_model.')}.".startswith(prefixes)]


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
