"""DreamBooth: a few images of one subject or of several, optionally with images of their classes.

Ruiz et al. 2022, arXiv:2208.12242.
"""

from __future__ import annotations

from dataclasses import replace

from sdjob.dataset import validation_split
from sdjob.dataset.concepts import Concept, concepts_of
from sdjob.dataset.formats import DatasetInfo
from sdtrain.data.streams import Stream
from sdtrain.recipes import class_images
from sdtrain.recipes.base import RecipeInput, open_images


def streams(given: RecipeInput) -> tuple[Stream, ...]:
    """One stream with the images of all subjects, and with prior preservation one with those of all classes."""
    spec = given.context.spec
    concepts = concepts_of(spec)
    several = spec.concepts_list is not None  # each image has the prompt of its subject
    weights = tuple(
        concept.weight
        for concept, info in zip(concepts, given.infos, strict=True)
        for _ in range(validation_split.trained_on(spec, info.num_examples))
    )
    instance = Stream(
        "instance",
        given.images,
        None if several else spec.instance_prompt,
        image_weights=weights if len(set(weights)) > 1 else (),
    )
    if not spec.with_prior_preservation:
        return (instance,)
    classes = {(concept.class_prompt or "", concept.class_data_dir): concept for concept in concepts}
    of_classes = [_class_images(given, concept) for concept in classes.values()]
    images = open_images(given.context, of_classes, [prompt for prompt, _ in classes] if several else ())
    prompt = None if several else spec.class_prompt
    return instance, Stream("class", images, prompt, spec.prior_loss_weight)


def _class_images(given: RecipeInput, concept: Concept) -> DatasetInfo:
    """The images of one class, given or generated. Collective."""
    spec = given.context.spec.model_copy(
        update={"class_prompt": concept.class_prompt, "class_data_dir": concept.class_data_dir}
    )
    context = replace(given.context, spec=spec)
    found = class_images.provide(context, given.parts, given.model_content)
    return found.first(spec.num_class_images)  # it may hold more, as generated for a run with a larger number
