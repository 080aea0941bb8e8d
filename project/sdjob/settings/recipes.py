"""Facts of each recipe that settings, launcher, reports and documents need; sdtrain.recipes trains by it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecipeFacts:
    """What a recipe is called, which settings belong to it, and what its model card says."""

    title: str
    data_setting: str  # the setting that names its dataset
    reads_captions: bool  # each image has its own prompt; otherwise all images of a subject share one
    has_subjects: bool  # instance_prompt, concepts_list and prior preservation apply
    learning_rate: float | None = None  # the rate of a full fine-tune; None: the default of the setting
    tags: tuple[str, ...] = ()  # tags of the model card


RECIPES: dict[str, RecipeFacts] = {
    "dreambooth": RecipeFacts(
        "DreamBooth", "instance_data_dir", reads_captions=False, has_subjects=True, tags=("dreambooth",)
    ),
    "text_to_image": RecipeFacts(
        "Text to image", "train_data_dir", reads_captions=True, has_subjects=False, learning_rate=1e-5
    ),
}


def with_captions() -> str:
    """The recipes that train on captions, as a setting to type."""
    return " or ".join(f"recipe={name}" for name, facts in RECIPES.items() if facts.reads_captions)


def with_subjects() -> str:
    """The recipes that learn subjects, as a setting to type."""
    return " or ".join(f"recipe={name}" for name, facts in RECIPES.items() if facts.has_subjects)
