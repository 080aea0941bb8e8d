"""DreamBooth: a few pictures of one subject, optionally with pictures of its class.

Ruiz et al. 2022, arXiv:2208.12242.
"""

from __future__ import annotations

from dataclasses import replace

from sdtrain import class_images
from sdtrain.recipes.base import Recipe, RecipeInput, find, open_images
from sdtrain.streams import Stream


def _streams(given: RecipeInput) -> tuple[Stream, ...]:
    spec = given.spec
    instance = Stream("instance", given.images, spec.instance_prompt)
    if not spec.with_prior_preservation:
        return (instance,)
    folder = class_images.provide(
        spec, given.world, given.layout, given.parts, given.model_identity, given.stop
    )
    info = find(spec, folder, captions=False)
    if info.format == "folder":  # may hold more, from a run that asked for more
        info = replace(info, files=info.files[: spec.num_class_images], num_examples=spec.num_class_images)
    images = open_images(spec, given.world, info)
    return instance, Stream("class", images, spec.class_prompt, spec.prior_loss_weight)


DREAMBOOTH = Recipe(captions=False, streams=_streams)
