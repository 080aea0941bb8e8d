"""Facts about architectures agree with diffusers' pipelines, and each row has its behavior."""

import inspect

import pytest

from sdjob.model.architectures import ARCHITECTURE_FACTS, component_names, titles
from sdjob.model.key_names import LAYOUTS
from sdlaunch.inputs.hub import wanted


@pytest.mark.parametrize("class_name", ARCHITECTURE_FACTS)
def test_a_row_agrees_with_diffusers(class_name):
    import sdtrain.architectures

    facts, behavior = ARCHITECTURE_FACTS[class_name], sdtrain.architectures.ARCHITECTURES[class_name]
    assert facts.class_name == class_name and behavior.facts is facts
    assert behavior.pipeline.__name__ == class_name
    assert facts.components.keys() <= inspect.signature(behavior.pipeline.__init__).parameters.keys()
    assert facts.kohya_prefixes.keys() == {facts.denoiser, *facts.text_encoders}
    assert {*facts.pooled, *facts.unused_last_layer} <= facts.text_encoders.keys()
    assert {facts.denoiser, "vae", "scheduler", *facts.text_encoders} <= facts.components.keys()
    assert set(facts.text_encoders.values()) <= facts.components.keys()
    assert (
        facts.original_layout is None or LAYOUTS[facts.original_layout].keys() == facts.text_encoders.keys()
    )


def test_every_architecture_has_both_halves():
    import sdtrain.architectures

    assert ARCHITECTURE_FACTS.keys() == sdtrain.architectures.ARCHITECTURES.keys()


def test_components_of_all_architectures_are_downloaded():
    names = [f"{part}/config.json" for part in ("unet", "text_encoder_2", "tokenizer_2", "safety_checker")]
    assert "text_encoder_2" in component_names()
    assert wanted("model", names) == names[:3]


def test_titles_are_a_remedy():
    assert titles() == "Stable Diffusion 1.x or 2.x, or the base of Stable Diffusion XL"
