"""A VAE that is used instead of the model's: a diffusers folder, or one file in the layout of the original."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjob.files import few, list_folder, shown, unreadable
from sdjob.formatting import counted
from sdjob.model import key_names, single_file
from sdjob.model.architectures import Component
from sdjob.model.weights import Part, read_config, with_weights
from sdjob.problems import JobError, Problem, bad_input

_CONFIG = "config.json"
_SCALING = 0.18215  # of diffusers, where a config does not say
_REMEDY = "use a VAE that was made for this model, or leave vae empty"


def find(path: Path, own: Part, required: Component, *, allow_pickle: bool) -> Part:
    """The VAE at a path, compared with the model's own. Raises JobError (66).

    Of one file `folder` is that file, and the config is that of the model's own: it states none.
    """
    try:
        is_file = path.is_file()
        names = () if is_file else (*list_folder(path).files, *list_folder(path).folders)
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    if is_file:
        return _from_file(path, own, allow_pickle=allow_pickle)
    folder = path if _CONFIG in names else path / "vae"
    if _CONFIG not in names and "vae" not in names:
        found = f"is not the folder of a VAE: it holds no config.json, and {few(names) or 'nothing'}"
        raise JobError(bad_input(shown(path), found, "name a folder of diffusers, or one file"))
    config = read_config(folder / _CONFIG)
    class_name = str(config.get("_class_name", required.classes[0]))
    if class_name not in required.classes:
        found = f"is a {class_name}, and this model needs a VAE of class {' or '.join(required.classes)}"
        raise JobError(bad_input(shown(folder), found, _REMEDY))
    if problems := _misfits(folder, config, own.config):
        raise JobError(problems)
    stems = required.weights or ("", "")
    return with_weights(Part(folder, class_name, config), *stems, allow_pickle=allow_pickle)


def _from_file(path: Path, own: Part, *, allow_pickle: bool) -> Part:
    header = single_file.header_of(path, allow_pickle=allow_pickle)
    prefixed = any(name.startswith(key_names.VAE) for name in header.tensors)
    named = {name if prefixed else key_names.VAE + name: tensor for name, tensor in header.tensors.items()}
    tensors = key_names.diffusers_tensors("", "vae", own.config, named)
    if not any(name.startswith("decoder.") for name in tensors):
        found = (
            f"is not a VAE in the layout of the original: it holds {counted(len(header.tensors), 'tensor')}"
        )
        such_as = f", such as {few(sorted(header.tensors), 2)}" if header.tensors else ""
        raise JobError(bad_input(shown(path), found + such_as, "name the file or the folder of a VAE"))
    return replace(own, folder=path, pickled=False).with_tensors([path], tensors)


def _misfits(folder: Path, config: Mapping[str, Any], own: Mapping[str, Any]) -> list[Problem]:
    """What makes its latents others than those that the denoiser was trained on."""
    facts = {
        "latent_channels": (config.get("latent_channels", 4), own.get("latent_channels", 4)),
        "scaling_factor": (config.get("scaling_factor", _SCALING), own.get("scaling_factor", _SCALING)),
        "shift_factor": (config.get("shift_factor"), own.get("shift_factor")),
        "number of blocks": (_levels(config), _levels(own)),
    }
    return [
        bad_input(shown(folder), f"has {name} {found}, and the model's own VAE {wanted}", _REMEDY)
        for name, (found, wanted) in facts.items()
        if found != wanted
    ]


def _levels(config: Mapping[str, Any]) -> int:
    widths = config.get("block_out_channels")
    return len(widths) if isinstance(widths, list) else 1


def converted_folder(part: Part, cache: Path) -> Path:
    """The folder that is made of a VAE in one file, below `cache`. Raises JobError."""
    config = json.dumps(part.config, sort_keys=True).encode()
    digest = hashlib.blake2b(config + single_file.content_of(part.folder), digest_size=8)
    return cache / f"vae-{digest.hexdigest()}"


def encoded_at_once(height: int, width: int) -> int:
    """How many images of a size the VAE encodes at once: 8 of 512 × 512, and fewer of larger ones."""
    return max(1, min(8, 8 * 512**2 // (height * width)))
