"""LoRAs of every kind: in the result as in the run, by every file; and started from an existing one."""

import hashlib

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import scale_lora_layers
from safetensors.torch import load_file, save_file

from sdjob.model import key_names, weights
from sdjob.model.architectures import STABLE_DIFFUSION_XL
from sdjob.model.pipeline import find_pipeline
from sdjob.model.trainable import LORA_FILE
from sdjob.problems import JobError
from sdjob.settings.run_spec import RunSpec
from sdtrain.export import export
from sdtrain.model import load, lora
from tests.sdtrain.export.test_export import richer_model
from tests.support import single
from tests.support.worker import losses

FILES = [LORA_FILE, export.WEBUI_LORA]
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
CONV = (*ATTENTION, "proj_in", "ff.net.0.proj", "conv1", "conv2", "time_emb_proj", "downsamplers.0.conv")


@pytest.fixture(scope="module", params=["sd1", "sd2", "xl"])
def model(request, tmp_path_factory, xl_model):
    """SD 1 and SD 2.1 differ in the activation of the text encoder, by which programs tell them apart."""
    if request.param == "xl":
        return xl_model
    return richer_model(
        tmp_path_factory.mktemp(request.param), "gelu" if request.param == "sd2" else "quick_gelu"
    )


def spec_of(model, **settings) -> RunSpec:
    given = {"lora_rank": 2, "train_text_encoder": True, **settings}
    return RunSpec(pretrained_model_name_or_path=str(model), output_dir="o", **given)


def made(model, spec):
    """The parts with a LoRA as the settings say, and the trainable weights."""
    source = find_pipeline(model, None, allow_pickle=False)
    text = spec.train_text_encoder
    parts = load.load(
        source, "no", torch.device("cpu"), allow_pickle=False, lora=True, train_text_encoder=text
    )
    return source, parts, load.trainable(load.make_trainable(parts, spec))


def trained(model, folder, **settings):
    """An exported LoRA, all of whose weights have an effect; returns the parts that it was trained in."""
    spec = spec_of(model, **settings)
    source, parts, state = made(model, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in state.values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    export.export(folder, source, parts, {name: w.detach() for name, w in state.items()}, spec)
    return parts


def outputs(architecture, unet, encoders, parts) -> list[torch.Tensor]:
    """What the denoiser predicts, and the text encoders encode."""
    for module in (unet, *encoders.values()):
        module.eval()
    side, generator = unet.config.sample_size, torch.Generator().manual_seed(2)
    latents = torch.randn(1, 4, side, side, generator=generator)
    with torch.no_grad():
        conditioning = architecture.encode(encoders, parts.token_ids(["a red cross"], 1))
        ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
        predicted = architecture.predict(unet, latents, torch.tensor([7]), {**conditioning, "time_ids": ids})
    return [predicted, *conditioning.values()]


def of_run(parts) -> list[torch.Tensor]:
    return outputs(parts.architecture, parts.denoiser, parts.text_encoders, parts)


def of_file(model, folder, name, parts) -> list[torch.Tensor]:
    """With the LoRA in a file, loaded by diffusers."""
    pipeline = DiffusionPipeline.from_pretrained(model)
    if name:
        pipeline.load_lora_weights(folder, weight_name=name)
    encoders = {each: getattr(pipeline, each) for each in parts.text_encoders}
    return outputs(parts.architecture, pipeline.unet, encoders, parts)


KINDS = {
    "attention": {"lora_alpha": 3},
    "conv": {"lora_target_modules": CONV, "lora_alpha": 1},
    "rank-stabilized": {"use_rslora": True, "lora_alpha": 3},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_diffusers_loads_what_was_trained_from_either_file(model, tmp_path, settings):
    parts = trained(model, tmp_path, **settings)
    wanted, base = of_run(parts), of_file(model, tmp_path, None, parts)
    for name in FILES:
        for found, of_training, of_base in zip(
            of_file(model, tmp_path, name, parts), wanted, base, strict=True
        ):
            torch.testing.assert_close(found, of_training, atol=1e-4, rtol=1e-4)
            assert (found - of_base).abs().max() > 1e-3


def test_a_dora_is_loaded_by_diffusers_and_merged_by_its_formula(model, tmp_path):
    """Other programs compute magnitude × V / ‖V‖ with V = W + scale × B A, the norm of each output."""
    parts = trained(model, tmp_path, use_dora=True, lora_alpha=3, lora_target_modules=CONV)
    for found, wanted in zip(of_file(model, tmp_path, LORA_FILE, parts), of_run(parts), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    kohya = load_file(tmp_path / export.WEBUI_LORA)
    layers = {name: layer for name, layer in parts.denoiser.named_modules() if hasattr(layer, "lora_A")}
    names = key_names.kohya_layers(parts.architecture.facts, "unet", parts.denoiser.config, layers)
    base = DiffusionPipeline.from_pretrained(model).unet
    for name, layer in layers.items():
        key, weight = names[name], base.get_submodule(name).weight
        down, up, alpha = (kohya[f"{key}.{each}"] for each in ("lora_down.weight", "lora_up.weight", "alpha"))
        moved = weight + alpha / down.shape[0] * (up.flatten(1) @ down.flatten(1)).view_as(weight)
        scale = kohya[f"{key}.dora_scale"]
        assert scale.shape == (len(weight), *[1] * (weight.dim() - 1))
        merged = scale * moved / moved.flatten(1).norm(dim=1).view_as(scale)
        layer.merge()
        torch.testing.assert_close(layer.get_base_layer().weight, merged, atol=1e-5, rtol=1e-4)


HEADERS = {
    "sd1": ("sd_v1", "False", "stable-diffusion-v1/lora"),
    "sd2": ("sd_v2", "True", "stable-diffusion-v2-512/lora"),
    "xl": ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
}


def test_the_header_says_what_it_is(model, tmp_path, request):
    trained(model, tmp_path, use_rslora=True, lora_rank=4, lora_alpha=3, resolution=64)
    file = tmp_path / export.WEBUI_LORA
    found = dict(weights.read_header(file).metadata)
    version, second, architecture = HEADERS[request.node.callspec.params["model"]]
    content = file.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert found.pop("modelspec.date")[:4].isdigit()
    assert found == {
        "format": "pt",
        "ss_base_model_version": version,
        "ss_v2": second,
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "6",  # 3 / √4 × 4: kohya's programs divide by the rank
        "ss_output_name": "lora",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"LoRA for {model.name}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "64x64",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(data).hexdigest()}",
    }


def test_kohyas_names_of_xl():
    """Its trainer adapts the linear layers and 1 × 1 convolutions of all transformers: 722 in the U-Net of XL. A name
    is lora_unet and the path in the original network, where transformers are input_blocks.4 to .8, middle_block.1 and
    output_blocks.0 to .5, with 2 or 10 blocks each."""
    tensors = single.published_tensors(single.SD_XL)["unet"]
    layers = [
        name.removesuffix(".weight")
        for name, shape in tensors.items()
        if ".attentions." in name and name.endswith(".weight") and len(shape) > 1
    ]
    config = single.config_of(single.SD_XL, "unet")
    found = set(key_names.kohya_layers(STABLE_DIFFUSION_XL, "unet", config, layers).values())
    blocks = {f"input_blocks_{n}_1": depth for n, depth in ((4, 2), (5, 2), (7, 10), (8, 10))}
    blocks |= {"middle_block_1": 10}
    blocks |= {
        f"output_blocks_{n}_1": depth for n, depth in zip(range(6), (10, 10, 10, 2, 2, 2), strict=True)
    }
    attention = [f"attn{n}_{layer}" for n in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out_0")]
    inner = [*attention, "ff_net_0_proj", "ff_net_2"]
    wanted = {
        f"lora_unet_{block}_transformer_blocks_{number}_{layer}"
        for block, depth in blocks.items()
        for number in range(depth)
        for layer in inner
    }
    wanted |= {f"lora_unet_{block}_{layer}" for block in blocks for layer in ("proj_in", "proj_out")}
    assert len(wanted) == 722
    assert found == wanted


# --- starting from an existing LoRA ------------------------------------------------------------------


@pytest.mark.parametrize("settings", [KINDS["conv"], {"use_dora": True}], ids=["conv", "DoRA"])
def test_a_run_starts_where_the_lora_ended(model, tmp_path, settings):
    """With another scale too: the matrices are multiplied so that outputs stay equal."""
    wanted = of_run(trained(model, tmp_path, **{"lora_alpha": 3, **settings}))
    for name in FILES:
        other = {**settings, "lora_alpha": 5, "use_rslora": name == LORA_FILE}
        _, parts, _ = made(model, spec_of(model, **other, lora_weights=str(tmp_path / name)))
        for found, expected in zip(of_run(parts), wanted, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def refused(model, **settings):
    with pytest.raises(JobError) as caught:
        made(model, spec_of(model, **settings))
    (problem,) = caught.value.problems
    return problem


def test_a_lora_of_which_a_part_would_be_lost(eps_model, tmp_path):
    trained(eps_model, tmp_path, lora_target_modules=(*ATTENTION, "proj_in"))
    problem = refused(eps_model, lora_weights=str(tmp_path))
    assert (problem.code, problem.subject) == (64, "lora_weights")
    assert (
        "tensors that this run does not train, such as unet." in problem.found and "proj_in" in problem.found
    )
    problem = refused(
        eps_model,
        lora_weights=str(tmp_path),
        train_text_encoder=False,
        lora_target_modules=(*ATTENTION, "proj_in"),
    )
    assert "such as text_encoder." in problem.found


def test_a_lora_of_another_model(eps_model, tmp_path):
    trained(eps_model, tmp_path)
    content = load_file(tmp_path / LORA_FILE)
    name = next(iter(content))
    save_file({**content, name: torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    problem = refused(eps_model, lora_weights=str(tmp_path / "other.safetensors"))
    assert problem.code == 66 and f"{name} is [2, 3], and this model and lora_rank need" in problem.found


@pytest.mark.parametrize("text", ["{", "[]", '{"unet.lora_alpha": "much"}'])
def test_a_lora_with_damaged_metadata(eps_model, tmp_path, text):
    trained(eps_model, tmp_path)
    file = tmp_path / "other.safetensors"
    save_file(load_file(tmp_path / LORA_FILE), file, metadata={"lora_adapter_metadata": text})
    problem = refused(eps_model, lora_weights=str(file))
    assert (problem.code, problem.subject) == (66, str(file)) and "cannot be read" in problem.found


def test_a_misspelt_entry_is_named_where_the_headers_are_not_known(eps_model):
    problem = refused(eps_model, lora_target_modules=("to_q", "to_kk"))
    assert (problem.code, problem.subject) == (64, "lora_target_modules")
    assert problem.found == "'to_kk' matches no layer of the U-Net"
    assert problem.remedy.startswith("Did you mean to_k")


# --- merging a LoRA, to generate with -----------------------------------------------------------------


def merged(model, file, strength=1.0):
    source = find_pipeline(model, None, allow_pickle=False)
    parts = load.load(source, "no", torch.device("cpu"), allow_pickle=False, lora=True)
    lora.merge(file, parts, strength)
    return parts


@pytest.mark.parametrize(
    "settings", [KINDS["conv"], {"use_dora": True, "lora_alpha": 3}], ids=["conv", "DoRA"]
)
def test_a_merged_lora_computes_what_was_trained(model, tmp_path, settings):
    """From either file; and with half the weight as peft scales it."""
    parts = trained(model, tmp_path, **settings)
    for strength in (1.0, 0.5):
        for part in parts.trainable.values():
            scale_lora_layers(part, strength)
        wanted = of_run(parts)
        for name in FILES:
            for found, expected in zip(of_run(merged(model, tmp_path / name, strength)), wanted, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    base = of_file(model, tmp_path, None, parts)
    assert (wanted[0] - base[0]).abs().max() > 1e-3


def test_a_lora_of_another_base_is_not_merged(eps_model, xl_model, tmp_path):
    trained(xl_model, tmp_path / "xl")
    trained(eps_model, tmp_path / "sd")
    content = load_file(tmp_path / "sd" / LORA_FILE)
    name = next(key for key in content if key.endswith("attn2.to_k.lora_A.weight"))
    save_file({**content, name: torch.zeros(2, 3)}, tmp_path / "wider.safetensors")
    for file, found in (
        (
            tmp_path / "xl" / LORA_FILE,
            "tensors belong to no layer of the model (Stable Diffusion 1.x or 2.x)",
        ),
        (tmp_path / "wider.safetensors", "as [outputs, inputs] = [8, 3], which is [8, 32] in the model"),
    ):
        with pytest.raises(JobError) as caught:
            merged(eps_model, file)
        (problem,) = caught.value.problems
        assert (problem.code, problem.subject) == (66, str(file)) and found in problem.found, problem
        assert problem.remedy.startswith("Name the model that it was trained on")


# --- training ----------------------------------------------------------------------------------------


def test_dropout_is_the_same_after_a_resume(train):
    settings = {"lora_rank": 2, "lora_dropout": 0.5, "learning_rate": 0.1}
    whole = losses(train("whole", max_train_steps=4, **settings))
    train("parts", max_train_steps=2, **settings)
    assert losses(train("parts", max_train_steps=4, **settings)) == whole
    assert losses(train("without", max_train_steps=4, **{**settings, "lora_dropout": 0.0})) != whole


def test_a_dora_trains_from_a_lora_and_resumes(train, inputs, tmp_path):
    started = train("lora", lora_rank=2, learning_rate=0.1, max_train_steps=1)
    settings = {
        "lora_rank": 2,
        "use_rslora": True,
        "learning_rate": 0.1,
        "lora_weights": started / "checkpoint",
    }
    whole = losses(train("whole", max_train_steps=3, **settings))
    train("parts", max_train_steps=2, **settings)
    assert losses(train("parts", max_train_steps=3, **settings)) == whole
    train("parts", max_train_steps=4, **{**settings, "lora_weights": None}, code=64)
    dora = {"lora_rank": 2, "use_dora": True, "learning_rate": 0.1}
    whole = losses(train("dora", max_train_steps=3, **dora))
    train("dora parts", max_train_steps=2, **dora)
    assert losses(train("dora parts", max_train_steps=3, **dora)) == whole
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_magnitude_vector"
    assert name in load_file(tmp_path / "dora/checkpoint" / LORA_FILE)


def test_a_dora_under_fsdp_has_the_same_losses(train):
    """Its norms are of whole weights, whatever is sharded."""
    settings = {
        "lora_rank": 2,
        "use_dora": True,
        "train_text_encoder": True,
        "learning_rate": 0.01,
        "ranks": 2,
    }
    found, wanted = (losses(train(plugin, plugin=plugin, **settings)) for plugin in ("fsdp", "torch_ddp"))
    assert found == pytest.approx(wanted, rel=1e-5)
