"""Class images for prior preservation: given ones, or generated once below the output folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sdjob import writing
from sdjob.dataset.concepts import too_few_class_images
from sdjob.dataset.detect import dataset_in
from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.splits import TO_TRAIN
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import GenerationSettings, Parts
from sdtrain.context import RunContext
from sdtrain.model.generation import generate, generation_settings
from sdtrain.reporting.progress import Progress


def folder_of(spec: RunSpec, layout: OutputLayout, model_content: str, how: GenerationSettings) -> Path:
    """Images generated with another model, prompt or sampling are in another folder."""
    inputs = [
        model_content,
        spec.class_prompt,
        spec.seed,
        spec.resolution,
        how.inference_steps,
        how.guidance_scale,
        how.prompt_chunks,
    ]
    return layout.class_images / hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def provide(context: RunContext, parts: Parts, model_content: str) -> DatasetInfo:
    """At least `num_class_images` images of the class. Collective; raises JobError (66), Stopped.

    A given `class_data_dir` is only read. Otherwise the missing images are generated, the n-th with the seed
    (seed + n). The batches, which decide the last bits of their images, are the same on any number of processes.
    """
    spec, world = context.spec, context.world
    if spec.class_data_dir:
        given = dataset_in(spec.class_data_dir, spec, captions=False, wanted_splits=TO_TRAIN)
        if too_few := too_few_class_images(spec, given):
            raise JobError(too_few)
        return given
    how = generation_settings(spec)
    folder = folder_of(spec, context.layout, model_content, how)
    context.layout.make(folder)
    world.barrier()  # no rank lists the folder while another one adds to it
    missing = {n for n in range(spec.num_class_images) if not _path(folder, n).exists()}
    world.barrier()
    batches = [
        range(first, min(first + how.batch_size, spec.num_class_images))
        for first in range(0, spec.num_class_images, how.batch_size)
    ]
    incomplete = [batch for batch in batches if not missing.isdisjoint(batch)]
    mine = [n for batch in incomplete[world.rank :: world.size] for n in batch]
    images = generate(parts, [spec.class_prompt or ""] * len(mine), [spec.seed + n for n in mine], how)
    progress = Progress("class images", len(missing), shown=world.is_main)
    for done, (number, image) in enumerate(zip(mine, images, strict=True), start=1):
        if number in missing:
            writing.write_png(_path(folder, number), image)
            progress.show(min(done * world.size, len(missing)))
        if context.stop:
            break  # the next start uses what is there
    context.end_if_stopped()
    return dataset_in(folder, spec, captions=False, wanted_splits=TO_TRAIN)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"
