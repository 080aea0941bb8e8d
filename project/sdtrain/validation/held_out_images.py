"""Images held out for the validation loss: a folder of their own, or a fraction of each dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdjob.dataset import validation_split
from sdjob.dataset.detect import dataset_in
from sdjob.dataset.splits import HELD_OUT
from sdjob.settings.run_spec import RunSpec
from sdtrain.context import RunContext
from sdtrain.data.sampling import permutation
from sdtrain.data.training_images import TrainingImages
from sdtrain.recipes.base import open_images


@dataclass(frozen=True)
class HeldOut:
    """Images that are not trained on. The validation loss is computed on the first `count`."""

    images: TrainingImages
    count: int
    prompt: str | None  # the prompt of all images; None: each has its caption


def hold_out(
    context: RunContext, images: TrainingImages, counts: Sequence[int]
) -> tuple[TrainingImages, HeldOut | None]:
    """Divide the images into those to train on and those held out. Collective. Raises JobError (66).

    `counts`: images of each dataset of `images`.
    """
    spec = context.spec
    captions = spec.recipe_facts.reads_captions
    prompt = None if captions else spec.instance_prompt
    if spec.validation_split:
        training, held_out = split(spec, counts)
        context.world.say(f"{len(held_out)} of {len(images)} images are held out")
        if spec.concepts_list:
            prompt = None  # each image has the prompt of its subject
        return images.only(training), _held_out(spec, images.only(held_out), prompt)
    if not spec.validation_data_dir:
        return images, None
    info = dataset_in(spec.validation_data_dir, spec, captions=captions, wanted_splits=HELD_OUT)
    return images, _held_out(spec, open_images(context, [info]), prompt)


def split(spec: RunSpec, counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Indices of the images to train on and of those held out, where datasets of `counts` images are concatenated.

    The fraction of each dataset depends on the seed and its size alone. The held-out indices alternate between the
    datasets, so that the first few come from all of them.
    """
    ranked: list[tuple[int, int]] = []  # (rank within its dataset, index)
    for number, count in enumerate(counts):
        order = permutation(spec.seed, 0, count, f"held out/{number}").tolist()
        first = sum(counts[:number])
        held_out = order[: validation_split.held_out(spec, count)]
        ranked += [(rank, first + index) for rank, index in enumerate(held_out)]
    held_out = [index for _, index in sorted(ranked, key=lambda item: item[0])]
    return sorted({*range(sum(counts))} - {*held_out}), held_out


def _held_out(spec: RunSpec, images: TrainingImages, prompt: str | None) -> HeldOut:
    images = replace(images, center_crop=True, random_flip=False)
    return HeldOut(images, min(len(images), spec.max_validation_samples), prompt)
