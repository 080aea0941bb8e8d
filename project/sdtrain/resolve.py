"""From the settings to what they mean here: model and datasets, precision, device and steps, and the fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

from sdjob.automatic import compilation, machine, weights_dtype
from sdjob.dataset import validation_split
from sdjob.dataset.concepts import Concept, concepts_of
from sdjob.dataset.detect import dataset_in
from sdjob.dataset.formats import DatasetInfo
from sdjob.model import part_compatibility
from sdjob.model.pipeline import PipelineFolder, find_of
from sdjob.problems import JobError, Problem, bad_setting
from sdjob.settings import compatibility, steps
from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.runtime import devices
from sdtrain.runtime.distributed import World


@dataclass(frozen=True)
class Inputs:
    """The model and the datasets of a run, recognised but not loaded."""

    model: PipelineFolder
    concepts: tuple[Concept, ...]  # the subjects of DreamBooth, one for each dataset
    datasets: tuple[DatasetInfo, ...]


def find_inputs(spec: RunSpec) -> Inputs:
    """Recognise model and datasets; raises JobError with the problems of all of them."""
    problems: list[Problem] = []
    model: PipelineFolder | None = None
    concepts: tuple[Concept, ...] = ()
    datasets: tuple[DatasetInfo, ...] = ()
    try:
        model = find_of(spec)
        problems += part_compatibility.problems(model)
    except JobError as error:
        problems += error.problems
    try:
        concepts = concepts_of(spec) if spec.recipe_facts.has_subjects else ()
        paths = tuple(concept.instance_data_dir for concept in concepts)
        datasets = tuple(_dataset(spec, path) for path in paths or (spec.train_data_dir,))
        problems += [problem for info in datasets for problem in validation_split.problems(spec, info)]
    except JobError as error:
        problems += error.problems
    if problems or model is None:
        raise JobError(problems)
    return Inputs(model, concepts, datasets)


def _dataset(spec: RunSpec, path: str | None) -> DatasetInfo:
    if path is None:
        remedy = "Name the folder of the images with --train_data_dir."
        raise JobError(bad_setting("train_data_dir", "not given", remedy))
    return dataset_in(path, spec, captions=spec.recipe_facts.reads_captions)


def resolve(spec: RunSpec, world: World, inputs: Inputs) -> RunSpec:
    """Replace `auto` and epochs by values; raises JobError if the run is not possible on these devices."""
    spec = spec.model_copy(update={"max_train_steps": num_steps(spec, world, inputs)})
    spec, problems = for_devices(spec, world)
    if problems := [*problems, *part_compatibility.setting_problems(spec, inputs.model)]:
        raise JobError(problems)
    return spec


def for_devices(spec: RunSpec, world: World) -> tuple[RunSpec, list[Problem]]:
    """The settings with what only these devices decide, and why they cannot run here."""
    topology = devices.topology(world.device_type, world.size)
    lacking = machine.lacking(topology.device)
    problems = [*compatibility.problems(spec, topology), *compilation.problems(spec, topology, lacking)]
    found = {
        "device": world.device_type.name,
        "mixed_precision": compatibility.resolve_precision(spec, topology),
        "weights_dtype": weights_dtype.choose(spec, topology).value,
        "compile": compilation.choose(spec, topology, lacking).value,
    }
    return spec.model_copy(update=found), problems


def num_steps(spec: RunSpec, world: World, inputs: Inputs, state: TrainState | None = None) -> int:
    """The last step of a run; one whose length is in epochs counts what is left after `state` in today's batches."""
    if not spec.num_train_epochs or not steps.by_epochs(spec):
        return spec.max_train_steps
    num_examples = sum(validation_split.trained_on(spec, info.num_examples) for info in inputs.datasets)
    step, samples = (state.step, state.samples_seen) if state else (0, 0)
    return steps.steps_of(spec.num_train_epochs, spec, num_examples, world.size, step=step, samples=samples)
