"""A model in one file as a diffusers folder: converted once, by diffusers, and kept in the cache."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file

from sdjob.files import shown
from sdjob.model import key_names, torch_zip, vae
from sdjob.model.pipeline import PipelineFolder, find_pipeline
from sdjob.model.single_file import SingleFile, converted_folder
from sdjob.model.weights import Part, with_weights
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError, Problem, bad_input, bad_output
from sdjob.settings.run_spec import RunSpec
from sdjob.writing import LinkError, discard, refuse_links, replacing
from sdtrain.reporting.progress import Progress, say
from sdtrain.runtime.distributed import World
from sdtrain.runtime.errors import of_link
from sdtrain.runtime.stop import Stopped, StopRequest

Weights = dict[str, torch.Tensor]
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ABANDONED = 600.0  # seconds without a write
_MERGES = Path(torch_zip.__file__).with_name("configs") / "clip/merges.txt.gz"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def as_folder(model: PipelineFolder, spec: RunSpec, world: World, stop: StopRequest) -> PipelineFolder:
    """The same model as a folder, and so its VAE. Collective. Raises JobError (73 where it cannot be written), Stopped.

    The first rank makes it, and then the first rank of each node that does not see it.
    """
    if model.single is None and model.parts["vae"].folder.is_dir():
        return model
    layout = OutputLayout(Path(spec.output_dir))
    cache = layout.cache(spec.cache_dir)
    try:
        refuse_links(cache, layout.root)
    except LinkError as error:
        raise JobError(of_link(error)) from error
    found: PipelineFolder | None = None
    for is_mine in (world.is_main, world.local_rank == 0):
        problems: list[Problem] = []
        if is_mine and not stop:
            try:
                found = found or _converted_model(model, cache, world, stop)
            except JobError as error:
                problems += error.problems
        world.agree(problems)
        if world.any(bool(stop)):
            raise Stopped(0)
    # The others find it there. None only after a stop, of which all ranks know.
    return found or _converted_model(model, cache, world, stop) or model


def _converted_model(
    model: PipelineFolder, cache: Path, world: World, stop: StopRequest
) -> PipelineFolder | None:
    """The model as a folder, which is made where it is missing; None: stopped meanwhile. Raises JobError (66, 73)."""
    own = replace(model, parts={**model.parts, "vae": model.own_vae or model.parts["vae"]})
    found: PipelineFolder | None = own
    if model.single:
        folder = converted_folder(model.single, cache)
        found = _complete(folder) or _made(own, model.single, folder, world, stop)
    if found is None or model.own_vae is None:
        return found
    part = model.parts["vae"]
    if part.folder.is_file():
        part = _converted_vae(part, vae.converted_folder(part, cache), found.path)
    return replace(found, parts={**found.parts, "vae": part}, own_vae=found.parts["vae"])


def _converted_vae(part: Part, folder: Path, base: Path) -> Part:
    """A VAE in one file as a folder, made with the config of the base model's. Raises JobError (73)."""
    if not folder.is_dir():
        say(f"converting {part.folder.name} (VAE) once, to {folder}")
        with _made_once(folder, "VAE") as temporary:
            state = _converted("vae", part, read_weights(part.folder), base).state_dict()
            _save(state, temporary / _WEIGHTS)
            (temporary / "config.json").write_text(json.dumps(dict(part.config), indent=2) + "\n")
    stem = _WEIGHTS.removesuffix(".safetensors")
    return with_weights(Part(folder, part.class_name, part.config), stem, stem, allow_pickle=False)


@contextmanager
def _made_once(folder: Path, what: str) -> Iterator[Path]:
    """An empty folder that gets this path, unless the body fails or another job with the same cache was faster.

    Raises JobError (73).
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder, durable=True) as temporary:
            temporary.mkdir()
            yield temporary
    except OSError as error:
        if not folder.is_dir():
            remedy = "Free some space there, or set cache_dir to a folder on a larger volume."
            problem = bad_output(str(folder), f"the converted {what} cannot be written ({error})", remedy)
            raise JobError(problem) from error


def _complete(folder: Path) -> PipelineFolder | None:
    """The folder that an earlier start has made; None: it is missing or damaged."""
    try:
        return find_pipeline(folder, None, allow_pickle=False)
    except JobError:
        return None


def _made(
    model: PipelineFolder, single: SingleFile, folder: Path, world: World, stop: StopRequest
) -> PipelineFolder | None:
    """Write the whole folder or nothing; None: stopped meanwhile. Raises JobError (66, 73)."""
    discard(folder)  # a damaged one
    say(f"converting {single.path.name} ({single.title}) once, to {folder}")
    try:
        with _made_once(folder, "model") as temporary:
            _remove_abandoned(folder)
            write_configs(single, model.parts, temporary)
            _write_weights(model, single, temporary, stop, shown=world.is_main)
    except Stopped:
        return None
    return find_pipeline(folder, None, allow_pickle=False)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed conversions have left: nothing has been written there for a while."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        newest = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
        if time.time() - newest > _ABANDONED:
            discard(left)


# --- configs and tokenizers --------------------------------------------------------------------------


def write_configs(single: SingleFile, parts: Collection[str], folder: Path) -> None:
    """Everything but the weights of the parts."""
    for name, source in single.config_files().items():
        if "/" not in name or name.split("/")[0] in parts:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
    _update(folder / "scheduler/scheduler_config.json", single.scheduler)
    index = folder / "model_index.json"
    entries = json.loads(index.read_text()).items()
    _update(
        index, {key: [None, None] for key, value in entries if isinstance(value, list) and key not in parts}
    )
    if single.is_published:
        for tokenizer in folder.glob("tokenizer*"):
            _write_clip_vocabulary(tokenizer)


def _update(file: Path, values: Mapping[str, Any]) -> None:
    if values:
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=2) + "\n")


def _write_clip_vocabulary(folder: Path) -> None:
    """OpenAI's merges, and the tokens that follow from them: bytes, bytes that end a word, merged pairs."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")), encoding="utf-8")


# --- weights -----------------------------------------------------------------------------------------


def _write_weights(
    model: PipelineFolder, single: SingleFile, folder: Path, stop: StopRequest, *, shown: bool
) -> None:
    """The weights of all parts. Raises JobError (66), Stopped."""
    weights = read_weights(single.path)
    networks = {name: part for name, part in model.parts.items() if part.tensors}
    done, total = 0, sum(part.num_bytes for part in networks.values())
    progress = Progress("convert (MB)", _megabytes(total), shown=shown)
    for name, part in networks.items():
        state = _converted(name, part, weights, folder).state_dict()
        file = _WEIGHTS
        if name.startswith("text_encoder"):
            state = {key_names.stored_name(key): weight for key, weight in state.items()}
            file = "model.safetensors"
        _save(state, folder / name / file)
        done += part.num_bytes
        progress.show(_megabytes(done))
        if stop:
            raise Stopped(0)


def _save(weights: Weights, file: Path) -> None:
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, file, metadata={"format": "pt"})


def _converted(name: str, part: Part, weights: Weights, configs: Path) -> torch.nn.Module:
    """A part with its weights in their own type, by diffusers' converters."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    dtypes = (_DTYPES[tensor.dtype] for tensor in part.tensors.values() if tensor.dtype in _DTYPES)
    settings: dict[str, Any] = {
        "config": str(configs),
        "subfolder": name,
        "local_files_only": True,
        "torch_dtype": max(dtypes, key=lambda dtype: dtype.itemsize),
    }
    module: torch.nn.Module
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()  # names and shapes are checked already
    try:
        if part.class_name.startswith("CLIP"):
            model_class = getattr(transformers, part.class_name)
            module = create_diffusers_clip_model_from_ldm(model_class, checkpoint=weights, **settings)
        else:
            module = getattr(diffusers, part.class_name).from_single_file(weights, **settings)
    finally:
        diffusers.logging.set_verbosity(verbosity)
    return module


def _megabytes(size: int) -> int:
    """Rounded up, so that the total is never 0."""
    return -(-size // 10**6)


def read_weights(path: Path) -> Weights:
    """The tensors of a file by the names that diffusers' converters know. Raises JobError (66)."""
    with path.open("rb") as file:
        is_zip = file.read(4) == torch_zip.MAGIC
    return {
        _with_text_model(name): weight
        for name, weight in (_unpickled(path) if is_zip else load_file(path)).items()
    }


def _with_text_model(name: str) -> str:
    """Some programs leave `text_model.` out of the names of CLIP."""
    for prefix in (key_names.CLIP, key_names.XL_CLIP):
        bare = prefix.removesuffix("text_model.")
        if name.startswith(bare) and not name.startswith(prefix):
            return prefix + name.removeprefix(bare)
    return name


class _TensorUnpickler(pickle.Unpickler):
    """Constructs tensors, and shells instead of all other objects."""

    def find_class(self, module: str, name: str) -> Any:
        return (
            super().find_class(module, name)
            if (module, name) in torch_zip.TENSOR_GLOBALS
            else torch_zip.Shell
        )


def _unpickled(path: Path) -> Weights:
    """The state dict in an archive of torch.save. torch's own `weights_only` refuses the objects of trainers."""
    reader = SimpleNamespace(__name__="tensors", Unpickler=_TensorUnpickler, load=None)
    try:
        state = torch_zip.innermost(
            torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=reader)
        )
    except Exception as error:  # a damaged pickle can raise anything
        found = f"is not a complete archive of torch.save ({type(error).__name__}: {error})"
        raise JobError(bad_input(shown(path), found, "download or copy this file again")) from error
    return {name: weight for name, weight in state.items() if isinstance(weight, torch.Tensor)}
