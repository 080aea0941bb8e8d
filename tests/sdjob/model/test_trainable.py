"""Tests of trainable: which parts are trained, and how many parameters that is."""

import pytest

from sdjob.model import trainable
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.sdjob.model.test_memory_estimate import TEXT, UNET, sd14, shaped, spec
from tests.support.pipeline import make_fitting, zeros

__all__ = ["sd14"]


@pytest.fixture
def fitting(tmp_path):
    return find_pipeline(make_fitting(tmp_path / "model"), None, allow_pickle=False)


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


# --- settings of a LoRA ------------------------------------------------------------------------------


def lora_problems(model, **settings):
    return list(trainable.lora_problems(spec(lora_rank=2, **settings), model))


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        ("to_kk", "Did you mean to_k or "),
        ("to_out", "Did you mean to_out.0"),
        ("attn1", "Did you mean to_k or to_out.0 or to_q or to_v? "),
        ("qkv", "Layers are named by the end of their name, such as to_k, to_q, to_v, to_out.0."),
        ("norm1", "Layers are named by the end of their name"),  # it has no matrix
    ],
)
def test_every_entry_must_match_a_layer(fitting, entry, remedy):
    (problem,) = lora_problems(fitting, lora_target_modules=("to_q", entry))
    assert (problem.code, problem.subject) == (64, "lora_target_modules")
    assert problem.found == f"{entry!r} matches no layer of the U-Net"
    assert problem.remedy.startswith(remedy)


def test_the_end_of_a_layer_is_found_in_a_name_of_any_form():
    ends = ["to_out.0", "b", "0.1", "a..0", "!" + "a" * 999, ""]
    layers = ["down.0.attn.to_out.0", "a.b", "0.1", "a..0", "a.!" + "a" * 999, ""]
    assert [trainable._end(layer) for layer in layers] == [*ends[:3], ".0", *ends[4:]]


def test_entries_that_match(fitting):
    assert lora_problems(fitting) == []
    entries = ("proj_in", "conv1", "to_out.0", "down_blocks.0.attentions.0.proj_out")
    assert lora_problems(fitting, lora_target_modules=entries) == []


def test_the_line_of_the_plan(fitting):
    line = trainable.lora_summary(spec(lora_rank=2, lora_target_modules=("to_q", "conv_in")), fitting)
    assert line == "LoRA: rank 2 on 9 layers of unet (8 to_q, 1 conv_in); 240 parameters"
    both = trainable.lora_summary(spec(lora_rank=2, train_text_encoder=True, use_dora=True), fitting)
    unet = "32 layers of unet (8 to_k, 8 to_q, 8 to_v, 8 to_out.0)"
    assert both.startswith(f"DoRA: rank 2 on {unet}, and 4 layers of text_encoder (1 q_proj, ")
    assert trainable.lora_summary(spec(), fitting) == ""


def test_a_lora_to_start_from(fitting, tmp_path):
    def refused(tensors, **settings):
        (tmp_path / "a.safetensors").write_bytes(zeros(tensors))
        (problem,) = lora_problems(fitting, lora_weights=str(tmp_path / "a.safetensors"), **settings)
        return problem

    assert lora_problems(fitting) == []
    problem = refused({"x.lora_down.weight": [8, 4]})
    assert (problem.code, problem.subject, problem.remedy) == (64, "lora_rank", "Set lora_rank=8.")
    assert "has layers of ranks 2, 4" in refused({"x.lora_A.weight": [2, 4], "y.lora_A.weight": [4, 4]}).found
    assert refused({"x.weight": [2, 4]}).found == "is not a LoRA"
    with pytest.raises(JobError, match="is missing"):
        lora_problems(fitting, lora_weights=str(tmp_path / "none.safetensors"))
    without_rank = spec(lora_weights="lora.safetensors")
    (problem,) = trainable.lora_problems(without_rank, fitting)
    assert (problem.code, problem.remedy) == (64, "Set lora_rank to the rank of that LoRA.")
