"""Tensors that are missing or have another shape than their config says are named; published configs are right."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from sdjob.model.pipeline import find_pipeline
from sdjob.model.weights import Part
from sdjob.problems import JobError
from sdtrain.model import check_tensors
from tests.support import single
from tests.support.pipeline import FILES, UNET, make_fitting, reconfigure, tiny_tensors, zeros
from tests.support.worker import alone

CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


@pytest.fixture
def folder(tmp_path):
    return make_fitting(tmp_path / "model")


def compared(path, **settings):
    return check_tensors.compare(find_pipeline(path, None, **{"allow_pickle": True, **settings}))


def only(path, **settings):
    (problem,) = compared(path, **settings).problems
    assert problem.code == 66
    return problem


def rewrite(folder, part, tensors):
    (folder / part / FILES[part]).write_bytes(zeros(tensors))


def test_parts_that_match_their_configs(folder):
    assert compared(folder) == check_tensors.Comparison()


@pytest.mark.parametrize(
    ("part", "key", "value", "tensor", "stored", "asked", "others"),
    [
        ("unet", "out_channels", 8, "conv_out.weight", [4, 4, 3, 3], [8, 4, 3, 3], 1),
        ("unet", "cross_attention_dim", 6, f"{BLOCK}.attn2.to_k.weight", [4, 4], [4, 6], 7),
        ("vae", "in_channels", 1, "encoder.conv_in.weight", [2, 3, 3, 3], [2, 1, 3, 3], 0),
        ("text_encoder", "vocab_size", 11, "embeddings.token_embedding.weight", [10, 4], [11, 4], 0),
    ],
)
def test_a_shape_that_the_config_does_not_say(folder, part, key, value, tensor, stored, asked, others):
    reconfigure(folder, part, **{key: value})
    problem = only(folder)
    more = f" ({others} more tensors differ)" if others else ""
    assert problem.subject == str(folder / part / FILES[part])
    assert problem.found == f"{tensor} is {stored}; {part}/config.json asks for {asked}{more}"
    assert "config.json and weights of the same model" in problem.remedy


def test_a_type_that_is_not_read(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"F16"', b'"X16"'))
    assert "has values of the type X16, which is not read" in only(folder).found


def test_missing_tensors(folder):
    tensors = tiny_tensors("unet")
    kept = {name: shape for name, shape in tensors.items() if not name.startswith("up_blocks.1.")}
    rewrite(folder, "unet", kept)
    problem = only(folder)
    lacking = len(tensors) - len(kept)
    assert f"lacks {lacking} of the {len(tensors)} tensors that unet/config.json asks for" in problem.found
    assert "up_blocks.1.attentions.0" in problem.found


def test_weights_of_another_architecture(folder):
    rewrite(folder, "unet", {"blocks.0.attn.qkv.weight": (4, 4), "pos_embed": (1, 4)})
    assert "holds 2 that unet/config.json does not ask for, such as blocks.0.attn.qkv" in only(folder).found


@pytest.mark.parametrize("values", [{"down_block_types": ["NoBlock2D", "DownBlock2D"]}, {"act_fn": "none"}])
def test_a_config_of_which_no_network_can_be_built(folder, values):
    reconfigure(folder, "unet", **values)
    problem = only(folder)
    assert problem.subject == str(folder / "unet/config.json")
    assert problem.found.startswith("does not describe a UNet2DConditionModel (")


@pytest.mark.parametrize(
    ("part", "values"),
    [("unet", {"layers_per_block": 1000}), ("text_encoder", {"num_hidden_layers": 1000})],
)
def test_a_config_of_a_few_bytes_does_not_build_a_network_of_any_size(folder, part, values, monkeypatch):
    built = []
    linear = torch.nn.Linear.__init__
    monkeypatch.setattr(
        torch.nn.Linear, "__init__", lambda self, *a, **k: (built.append(1), linear(self, *a, **k))[1]
    )
    reconfigure(folder, part, **values)
    assert re.search(r"does not describe .* \(it asks for more than 1,\d+ tensors\)", only(folder).found)
    assert len(built) < 1500


def test_tensors_that_are_ignored_are_a_warning(folder):
    rewrite(folder, "vae", {**tiny_tensors("vae"), "loss.logvar": (2,)})
    found = compared(folder)
    assert found.problems == ()
    (warning,) = found.warnings
    assert "1 tensors that config.json does not ask for are ignored, such as loss.logvar" in warning


def test_names_of_older_files(folder):
    older = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    old = {}
    for name, shape in tiny_tensors("vae").items():
        for new_name, old_name in older:
            name = name.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}.")
        old[name] = shape
    assert any("proj_attn" in name for name in old)
    rewrite(folder, "vae", old)
    prefixed = {f"text_model.{name}": shape for name, shape in tiny_tensors("text_encoder").items()}
    rewrite(folder, "text_encoder", {**prefixed, "text_model.embeddings.position_ids": (1, 77)})
    assert compared(folder) == check_tensors.Comparison()


def test_a_shard_with_a_wrong_tensor_is_the_one_named(folder):
    tensors = {**tiny_tensors("unet"), "conv_in.weight": (4, 9, 3, 3)}
    names = sorted(tensors)
    unet = folder / "unet"
    (unet / FILES["unet"]).unlink()
    weight_map = {}
    for file, held in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        (unet / file).write_bytes(zeros({name: tensors[name] for name in held}))
        weight_map |= dict.fromkeys(held, file)
    index = {"weight_map": weight_map}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    problem = only(folder)
    assert problem.subject == str(unet / weight_map["conv_in.weight"])
    assert "conv_in.weight is [4, 9, 3, 3]; unet/config.json asks for [4, 4, 3, 3]" in problem.found


def test_pickles_are_not_compared(folder):
    (folder / "unet" / FILES["unet"]).unlink()
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")
    reconfigure(folder, "unet", **{**UNET, "out_channels": 8})
    assert compared(folder) == check_tensors.Comparison()


def test_a_single_file(tmp_path):
    shapes = single.original_shapes(single.SD_1)
    file = tmp_path / "model.safetensors"
    assert compared(single.sparse(file, shapes)) == check_tensors.Comparison()
    block = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff."
    problem = only(single.sparse(file, {k: v for k, v in shapes.items() if not k.startswith(block)}))
    assert problem.subject == str(file)
    assert "lacks 4 of the 686 tensors that unet/config.json asks for, such as up_blocks.3" in problem.found
    problem = only(single.sparse(file, {**shapes, f"{block}net.7.bias": (4,)}))
    assert "holds 1 that unet/config.json does not ask for" in problem.found
    tokens = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    problem = only(single.sparse(file, shapes | {tokens: (49411, 768)}))
    assert (
        "embeddings.token_embedding.weight is [49411, 768]; text_encoder/config.json asks for"
        in problem.found
    )
    assert "single_file_config" in problem.remedy


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (single.SD_1, {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        (single.SD_2, {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
        (single.SD_XL, {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}),
    ],
)
def test_the_committed_configs(model, parameters):
    """They ask for the published numbers of parameters; the tensors that tests use are the same."""
    for part, count in parameters.items():
        config = single.config_of(model, part)
        shapes = check_tensors.expected_shapes(Part(Path(), CLASSES[part], config=config))
        assert shapes == single.published_tensors(model)[part]
        assert sum(math.prod(shape) for shape in shapes.values()) == count


def test_every_rank_learns_of_it_before_anything_is_written(folder):
    reconfigure(folder, "unet", out_channels=8)
    with pytest.raises(JobError) as caught:
        check_tensors.check(find_pipeline(folder, None, allow_pickle=False), alone())
    assert caught.value.code == 66


def test_the_command_prints_json(folder, capsys):
    reconfigure(folder, "unet", out_channels=8)
    check_tensors.main([f"--pretrained_model_name_or_path={folder}", "--output_dir=out"])
    found = json.loads(capsys.readouterr().out)
    assert [problem["code"] for problem in found["problems"]] == [66]
    assert found["warnings"] == []


@pytest.mark.parametrize("values", [{"beta_schedule": "laplace"}, {"beta_schedule": "sigmoid"}])
def test_a_scheduler_config_of_which_no_schedule_can_be_built(folder, values):
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", **values}))
    problem = only(folder)
    assert problem.subject == str(path) and "does not describe a PNDMScheduler" in problem.found
