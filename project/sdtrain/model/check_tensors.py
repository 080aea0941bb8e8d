"""Compare the tensors of a model's files with those that its configs ask for, on torch's meta device.

`python -m sdtrain.model.check_tensors FLAGS…` prints the outcome as JSON, for the launcher's `check`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import diffusers
import torch
import transformers
from torch.nn.modules.module import register_module_parameter_registration_hook

from sdjob.files import few, shown
from sdjob.model.key_names import current_name
from sdjob.model.pipeline import PipelineFolder, find_of
from sdjob.model.weights import COPY_AGAIN, ITEM_SIZE, Part
from sdjob.problems import JobError, Problem, bad_input
from sdjob.settings import flags
from sdtrain.architectures import ARCHITECTURES
from sdtrain.reporting.progress import say
from sdtrain.runtime.distributed import World

Shape = tuple[int, ...]
_BUFFER = "embeddings.position_ids"  # of older files
_ONE_MODEL = "copy config.json and weights of the same model into this folder (save_pretrained writes both)"
_WHOLE_FILE = "download or copy the file again; a model of another architecture needs single_file_config"


@dataclass(frozen=True)
class Comparison:
    """What is wrong with the tensors of a model, and what is ignored when it is loaded."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def check(model: PipelineFolder, world: World) -> None:
    """Raise JobError (66) on every rank if tensors are missing or have other shapes. Collective."""
    found = compare(model) if world.is_main else Comparison()
    for warning in found.warnings:
        say(f"warning: {warning}")
    world.agree(list(found.problems))


def compare(model: PipelineFolder) -> Comparison:
    """All parts with known tensors (not those of pickles in folders), and the scheduler."""
    found = [
        each for name, part in model.parts.items() if part.tensors for each in _of_part(model, name, part)
    ]
    found += _of_scheduler(model)
    return Comparison(
        tuple(each for each in found if isinstance(each, Problem)),
        tuple(each for each in found if isinstance(each, str)),
    )


def _of_scheduler(model: PipelineFolder) -> Iterator[Problem]:
    """Whether diffusers makes a noise schedule of the config; those of single files are this project's."""
    scheduler = model.parts["scheduler"]
    if model.single:
        return
    try:
        ARCHITECTURES[model.class_name].schedulers(scheduler.folder, zero_snr=False)
    except Exception as error:  # values of any type, in any combination
        found = f"does not describe a {scheduler.class_name} ({error})"
        yield bad_input(shown(scheduler.folder / "scheduler_config.json"), found, COPY_AGAIN)


def expected_shapes(part: Part) -> dict[str, Shape]:
    """Name → shape of every tensor that the config of a part asks for. Raises ValueError if these are far too many."""
    limit = 2 * len(part.tensors) + 1000 if part.tensors else 100_000
    with torch.device("meta"), _at_most(limit):
        if hasattr(diffusers, part.class_name):
            module = getattr(diffusers, part.class_name).from_config(dict(part.config))
        else:
            model_class = getattr(transformers, part.class_name)
            module = model_class(model_class.config_class.from_dict(dict(part.config)))
    return {current_name(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Let modules of the body have so many parameters: a config of a few bytes can ask for a million layers."""
    names = count(1)

    def check(_module: torch.nn.Module, _name: str, _parameter: torch.nn.Parameter | None) -> None:
        if next(names) > limit:
            raise ValueError(f"it asks for more than {limit:,} tensors")

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _of_part(model: PipelineFolder, name: str, part: Part) -> Iterator[Problem | str]:
    """Problems, or if there are none a warning."""
    asks = f"{name}/config.json"
    try:
        expected = expected_shapes(part)
    except Exception as error:  # values of any type, in any combination
        found = f"does not describe a {part.class_name} ({error})"
        yield bad_input(shown(part.folder / "config.json"), found, _ONE_MODEL)
        return
    tensors = {current_name(key): tensor for key, tensor in part.tensors.items()}
    tensors.pop(_BUFFER, None)
    remedy = _WHOLE_FILE if model.single else _ONE_MODEL
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or (unknown and model.single and name == model.architecture.denoiser):
        lacks = f"lacks {len(missing)} of the {len(expected)} tensors that {asks} asks for, such as {few(missing, 3)}"
        holds = f"holds {len(unknown)} that {asks} does not ask for, such as {few(unknown, 2)}"
        found = ", and ".join([lacks] * bool(missing) + [holds] * bool(unknown))
        subject = part.weights[0] if len(part.weights) == 1 else part.folder
        yield bad_input(shown(subject), found, remedy)
    wrong = [key for key in expected if key in tensors and tensors[key].shape != expected[key]]
    if wrong:
        first = wrong[0]
        more = f" ({len(wrong) - 1} more tensors differ)" if len(wrong) > 1 else ""
        found = f"{first} is {list(tensors[first].shape)}; {asks} asks for {list(expected[first])}{more}"
        yield bad_input(shown(tensors[first].file), found, remedy)
    foreign = [key for key in expected if key in tensors and tensors[key].dtype not in ITEM_SIZE]
    if foreign:
        found = f"{foreign[0]} has values of the type {shown(tensors[foreign[0]].dtype)}, which is not read"
        yield bad_input(shown(tensors[foreign[0]].file), found, remedy)
    if unknown and not (missing or wrong or foreign or model.single):
        ignored = (
            f"{len(unknown)} tensors that config.json does not ask for are ignored, such as {few(unknown, 2)}"
        )
        yield f"{shown(part.folder)}: {ignored}"


def main(arguments: list[str]) -> None:
    """Print {"problems": […], "warnings": […]} of the model that the worker's flags name."""
    try:
        found = compare(find_of(flags.parse(arguments)))
    except JobError as error:
        found = Comparison(error.problems)
    problems = [problem.to_dict() for problem in found.problems]
    print(json.dumps({"problems": problems, "warnings": found.warnings}))


if __name__ == "__main__":
    main(sys.argv[1:])
