"""DreamBooth: a few pictures of one subject, optionally with pictures of its class.

Ruiz et al. 2022, arXiv:2208.12242.
"""

from __future__ import annotations

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
    images = open_images(spec, given.world, find(spec, folder, captions=False))
    return instance, Stream("class", images, spec.class_prompt, spec.prior_loss_weight)


DREAMBOOTH = Recipe(captions=False, streams=_streams)
