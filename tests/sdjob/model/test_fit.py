"""Parts that do not fit their config, or each other, are named with tensor, shapes and config key."""

import json

import pytest

from sdjob.model import fit
from sdjob.model.pipeline import find_pipeline
from tests.support.pipeline import FILES, UNET, VAE, expected, make_fitting, zeros


@pytest.fixture
def folder(tmp_path):
    return make_fitting(tmp_path / "model")


def looked(folder):
    return find_pipeline(folder, None, allow_pickle=True)


def problems(folder):
    return fit.problems(looked(folder))


def only(folder):
    (problem,) = problems(folder)
    assert problem.code == 66
    return problem


def reconfigure(folder, part, **values):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_parts_that_fit(folder):
    assert problems(folder) == []
    assert fit.surplus(looked(folder)) == []


@pytest.mark.parametrize(
    ("part", "key", "value", "tensor", "have", "want"),
    [
        ("unet", "out_channels", 8, "conv_out.weight", [4, 4, 3, 3], [8, 4, 3, 3]),
        ("vae", "in_channels", 1, "encoder.conv_in.weight", [2, 3, 3, 3], [2, 1, 3, 3]),
        (
            "text_encoder",
            "max_position_embeddings",
            64,
            "embeddings.position_embedding.weight",
            [77, 4],
            [64, 4],
        ),
        ("text_encoder", "vocab_size", 11, "embeddings.token_embedding.weight", [10, 4], [11, 4]),
    ],
)
def test_a_shape_that_the_config_does_not_say(folder, part, key, value, tensor, have, want):
    reconfigure(folder, part, **{key: value})
    problem = only(folder)
    assert problem.subject == str(folder / part / FILES[part])
    assert problem.found.startswith(f"{tensor} is {have}; {part}/config.json says {want}, by {key}={value}")
    assert "config.json and weights of one and the same model" in problem.remedy


def test_a_u_net_for_another_text_encoder(folder):
    """Its own config is wrong about it, or it does not match its neighbour: both are said."""
    reconfigure(folder, "unet", cross_attention_dim=6)
    own, between = sorted(problems(folder), key=lambda problem: len(problem.subject), reverse=True)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight is [4, 4]" in own.found
    assert "says [4, 6], by cross_attention_dim=6 (7 more tensors differ)" in own.found
    assert (
        between.found
        == "unet/config.json has cross_attention_dim=6, and text_encoder/config.json hidden_size=4"
    )


def test_latents_that_the_u_net_does_not_take(folder):
    reconfigure(folder, "vae", latent_channels=8)
    found = [problem.found for problem in problems(folder)]
    assert "unet/config.json has in_channels=4, and vae/config.json latent_channels=8" in found
    assert any("quant_conv" in text or "encoder.conv_out.weight is [8, 2, 3, 3]" in text for text in found)


def test_token_ids_beyond_the_table(folder):
    (folder / "tokenizer/vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 10}))
    assert only(folder).found == "has token ids up to 10, and text_encoder/config.json vocab_size=10"


def test_a_truncated_set_of_tensors(folder):
    tensors = expected("unet", UNET)
    kept = {name: shape for name, shape in tensors.items() if not name.startswith("up_blocks.1.")}
    (folder / "unet" / FILES["unet"]).write_bytes(zeros(kept))
    problem = only(folder)
    gone = len(tensors) - len(kept)
    assert f"lacks {gone} of the {len(tensors)} tensors that unet/config.json asks for" in problem.found
    assert "up_blocks.1.attentions.0" in problem.found


def test_weights_of_another_architecture(folder):
    (folder / "unet" / FILES["unet"]).write_bytes(
        zeros({"blocks.0.attn.qkv.weight": (4, 4), "pos_embed": (1, 4)})
    )
    problem = only(folder)
    assert "holds 2 that it does not know, such as blocks.0.attn.qkv.weight, pos_embed" in problem.found


def test_tensors_without_a_place_are_a_warning(folder):
    more = {**expected("vae", VAE), "loss.logvar": (2,)}
    (folder / "vae" / FILES["vae"]).write_bytes(zeros(more))
    assert problems(folder) == []
    (sentence,) = fit.surplus(looked(folder))
    assert "1 tensors that config.json has no place for are ignored, such as loss.logvar" in sentence


def test_names_of_older_files(folder):
    old = {}
    for name, shape in expected("vae", VAE).items():
        for new_name, old_name in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            name = name.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}.")
        old[name] = shape
    assert any("proj_attn" in name for name in old)
    (folder / "vae" / FILES["vae"]).write_bytes(zeros(old))
    text = expected("text_encoder", json.loads((folder / "text_encoder/config.json").read_text()))
    prefixed = {f"text_model.{name}": shape for name, shape in text.items()}
    (folder / "text_encoder" / FILES["text_encoder"]).write_bytes(
        zeros({**prefixed, "text_model.embeddings.position_ids": (1, 77)})
    )
    assert problems(folder) == []
    assert fit.surplus(looked(folder)) == []


def shard(folder, tensors):
    """The U-Net in two files and an index."""
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    unet = folder / "unet"
    (unet / FILES["unet"]).unlink()
    for file, those in halves.items():
        (unet / file).write_bytes(zeros({name: tensors[name] for name in those}))
    weight_map = {name: file for file, those in halves.items() for name in those}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    return weight_map


def test_shards(folder):
    shard(folder, expected("unet", UNET))
    assert problems(folder) == []


def test_a_shard_with_a_wrong_tensor_is_the_one_named(folder):
    tensors = {**expected("unet", UNET), "conv_in.weight": (4, 9, 3, 3)}
    weight_map = shard(folder, tensors)
    problem = only(folder)
    assert problem.subject == str(folder / "unet" / weight_map["conv_in.weight"])
    assert (
        "conv_in.weight is [4, 9, 3, 3]; unet/config.json says [4, 4, 3, 3], by in_channels=4"
        in problem.found
    )


@pytest.mark.parametrize(
    "values",
    [
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
        {"class_embed_type": "timestep"},
        {"mid_block_type": None},
        {"layers_per_block": [1, 2]},
        {"block_out_channels": "4"},
    ],
)
def test_of_a_layout_that_is_not_known_nothing_is_said(folder, values):
    reconfigure(folder, "unet", **values)
    assert problems(folder) == []


def test_pickles_are_not_looked_into(folder):
    (folder / "unet" / FILES["unet"]).rename(folder / "unet/diffusion_pytorch_model.bin")
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("size", "resolution", "doubtful"), [(96, 128, True), (96, 192, False), (None, 64, False)]
)
def test_smaller_images_than_the_model_was_made_for(folder, size, resolution, doubtful):
    """This VAE halves an image once: 96 latents are 192 pixels."""
    reconfigure(folder, "unet", sample_size=size)
    sentences = fit.too_small(looked(folder), resolution)
    assert [sentence.split(":")[0] for sentence in sentences] == ["resolution"] * doubtful
    assert all("made for 192 pixels" in sentence for sentence in sentences)
