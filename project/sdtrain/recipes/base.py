"""A recipe: the streams of images to train on, with their prompts and weights. LoRA applies to any recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from torch.utils.data import ConcatDataset

from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.verify import joined
from sdjob.problems import Problem
from sdtrain.architectures.base import Parts
from sdtrain.context import RunContext
from sdtrain.data.scan import report_skipped
from sdtrain.data.sources import DatasetSource, open_source
from sdtrain.data.streams import Stream
from sdtrain.data.training_images import TrainingImages, verify


@dataclass(frozen=True)
class RecipeInput:
    """What a recipe may use to build its streams."""

    context: RunContext
    parts: Parts
    infos: tuple[DatasetInfo, ...]  # one, or one for each subject
    images: TrainingImages  # of all datasets, without those held out
    model_content: str


Recipe = Callable[[RecipeInput], tuple[Stream, ...]]  # collective; its facts are in sdjob.settings.recipes


def open_images(
    context: RunContext, infos: Sequence[DatasetInfo], prompts: Sequence[str] = ()
) -> TrainingImages:
    """The images of datasets, checked by `verify_images`. Collective; raises JobError (66).

    prompts: one for each dataset, instead of captions; or none.
    """
    spec, world = context.spec, context.world
    sources: list[DatasetSource] = []
    bad: dict[int, Problem] = {}
    for info, prompt in zip_longest(infos, prompts):
        with world.main_first():
            source = open_source(info, Path(spec.cache_dir) if spec.cache_dir else None, prompt)
        first = sum(map(len, sources))
        examined = joined(world.gather(verify(source, spec.verify_images, world.rank, world.size)))
        bad |= {first + index: problem for index, problem in examined.problems.items()}
        for line, is_warning in examined.lines():
            world.say(f"warning: {line}" if is_warning else line)
        sources.append(source)
    images = TrainingImages(
        ConcatDataset(sources),
        resolution=spec.resolution,
        center_crop=spec.center_crop,
        random_flip=spec.random_flip,
        interpolation=spec.image_interpolation_mode,
        seed=spec.seed,
        max_bad_samples=spec.max_bad_samples if spec.bad_samples == "skip" else 0,
    ).without(bad)
    report_skipped(bad, world)
    return images
