"""Tests of trainable: which parts are trained, and how many parameters that is."""

import pytest

from sdjob.model import trainable
from tests.sdjob.model.test_memory_estimate import TEXT, UNET, sd14, shaped, spec

__all__ = ["sd14"]


def test_the_u_net_and_if_asked_for_the_text_encoder(sd14):
    assert trainable.parts(spec(), sd14) == ("unet",)
    assert trainable.parameters(spec(), sd14) == UNET
    both = spec(train_text_encoder=True)
    assert trainable.parts(both, sd14) == ("unet", "text_encoder")
    assert trainable.parameters(both, sd14) == UNET + TEXT


@pytest.mark.parametrize(
    ("targets", "widths"),
    [(("to_k",), 8 + 32), (("conv",), 4 + 4 * 9), (("to_k", "conv"), 80), (("elsewhere",), 0)],
)
def test_a_lora_has_rank_times_the_widths_of_its_layers(targets, widths):
    model = shaped(to_k=(8, 32), conv=(4, 4, 3, 3))
    lora = spec(lora_rank=3, lora_target_modules=targets)
    assert trainable.parameters(lora, model) == 3 * widths


def test_the_lora_of_a_text_encoder_has_layers_of_its_own(sd14):
    unet = trainable.parameters(spec(lora_rank=16), sd14)
    both = trainable.parameters(spec(lora_rank=16, train_text_encoder=True), sd14)
    assert both - unet == 16 * 12 * 4 * (768 + 768)  # 12 layers, q_proj, k_proj, v_proj and out_proj
