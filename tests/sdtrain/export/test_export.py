"""Tests of export and webui: the result is complete and loadable, its frozen parts are copied byte for byte."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sddemo.tiny_pipeline import make_tiny_pipeline
from sdjob.model.pipeline import find_pipeline
from sdjob.output.layout import LORA_FILE, is_exported
from sdjob.settings.run_spec import RunSpec
from sdtrain.export import export
from sdtrain.model import load
from tests.support.worker import Killed, snapshot


@pytest.fixture
def model(eps_model, tmp_path):
    """A copy of the tiny pipeline, to be changed."""
    return shutil.copytree(eps_model, tmp_path / "model")


def spec_of(model, **settings) -> RunSpec:
    return RunSpec(pretrained_model_name_or_path=str(model), output_dir="o", **settings)


def prepared(model, **settings):
    """The files and the parts of a run with these settings, the settings, and the trainable weights."""
    source, spec = find_pipeline(model, None, allow_pickle=False), spec_of(model, **settings)
    how = {"train_text_encoder": spec.train_text_encoder, "zero_snr": spec.rescale_betas_zero_snr}
    parts = load.load(source, "no", torch.device("cpu"), allow_pickle=False, **how)
    return source, parts, spec, load.trainable(load.make_trainable(parts, spec))


def exported(model, folder, *, shift=0.0, **settings) -> Path:
    """Exports the model with every trained weight moved by `shift`; returns the folder."""
    source, parts, spec, trained = prepared(model, **settings)
    state = {name: p.detach() + shift for name, p in trained.items()}
    export.export(folder, source, parts, state, spec)
    return folder


def test_files_have_the_usual_permissions(model, tmp_path):
    """Those of weights too, which safetensors writes for their owner only."""
    folder = exported(model, tmp_path / "out", export_single_file=True)
    usual = tmp_path / "usual"
    usual.touch()
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {usual.stat().st_mode}


def test_frozen_parts_are_copied_byte_for_byte(model, tmp_path):
    folder = exported(model, tmp_path / "out")
    before, after = snapshot(model), snapshot(folder)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {weights}


def test_pickles_with_a_safetensors_twin_and_hidden_files_stay_behind(model, tmp_path):
    (model / "vae/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (model / "text_encoder/.cache").write_text("")
    found = snapshot(exported(model, tmp_path / "out"))
    assert "vae/diffusion_pytorch_model.bin" not in found
    assert "text_encoder/.cache" not in found


@pytest.mark.parametrize("sampler", ["PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_a_result_samples_with_the_zero_terminal_snr_that_it_was_trained_with(v_model, tmp_path, sampler):
    model = shutil.copytree(v_model, tmp_path / "model")
    for file in (model / "scheduler/scheduler_config.json", model / "model_index.json"):
        file.write_text(file.read_text().replace("DDIMScheduler", sampler))
    source, parts, spec, weights = prepared(model, rescale_betas_zero_snr=True)
    export.export(tmp_path / "out", source, parts, weights, spec)
    scheduler = StableDiffusionPipeline.from_pretrained(tmp_path / "out").scheduler
    assert type(scheduler).__name__ == {"PNDMScheduler": "DDIMScheduler"}.get(sampler, sampler)
    assert scheduler.config.rescale_betas_zero_snr and scheduler.config.timestep_spacing == "trailing"
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999 and parts.process.schedule.alphas_cumprod[-1] == 0


def test_only_parts_of_the_pipeline_are_copied(model, tmp_path):
    (model / "old_checkpoints").mkdir()
    (model / "old_checkpoints/huge.safetensors").write_bytes(b"x")
    (model / "v1-5-pruned.ckpt").write_bytes(b"x")
    folder = exported(model, tmp_path / "out")
    assert not (folder / "old_checkpoints").exists()
    assert not (folder / "v1-5-pruned.ckpt").exists()


def test_a_variant_is_loaded_by_default(model, tmp_path):
    """The result of a model with fp16 files only needs no variant="fp16"."""
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (model / part / f"{stem}.safetensors").rename(model / part / f"{stem}.fp16.safetensors")
    folder = exported(model, tmp_path / "out")
    assert StableDiffusionPipeline.from_pretrained(folder).vae is not None


def test_of_two_variants_only_the_one_in_use_is_copied(model, tmp_path):
    shutil.copy(
        model / "vae/diffusion_pytorch_model.safetensors",
        model / "vae/diffusion_pytorch_model.fp16.safetensors",
    )
    found = snapshot(exported(model, tmp_path / "out"))
    assert "vae/diffusion_pytorch_model.safetensors" in found
    assert "vae/diffusion_pytorch_model.fp16.safetensors" not in found


def test_lora_loads_with_its_alpha(model, tmp_path):
    folder = exported(model, tmp_path / "out", shift=0.1, lora_rank=3, lora_alpha=6)
    assert snapshot(folder).keys() == {LORA_FILE, export.WEBUI_LORA}
    with safe_open(folder / LORA_FILE, "pt") as file:
        assert all(file.get_tensor(name).dtype == torch.float32 for name in file.keys())  # noqa: SIM118

    pipeline = StableDiffusionPipeline.from_pretrained(model)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    base = pipeline.unet.get_submodule(layer).weight.detach().clone()
    pipeline.load_lora_weights(folder)
    config = next(iter(pipeline.unet.peft_config.values()))
    assert (config.r, config.lora_alpha) == (3, 6)
    with safe_open(folder / LORA_FILE, "pt") as file:
        down, up = (file.get_tensor(f"unet.{layer}.lora_{matrix}.weight") for matrix in "AB")
    pipeline.fuse_lora()
    fused = pipeline.unet.get_submodule(layer).weight
    torch.testing.assert_close(fused, base + 6 / 3 * up @ down)


def test_a_lora_of_other_layers_than_attention_loads_whole(model, tmp_path):
    layers = ("to_k", "to_q", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "time_emb_proj")
    source, parts, spec, trained = prepared(model, lora_rank=2, lora_target_modules=layers)
    with torch.no_grad():
        for weight in trained.values():
            weight.copy_(torch.linspace(-0.3, 0.2, weight.numel()).view_as(weight))
    export.export(tmp_path / "out", source, parts, {n: w.detach() for n, w in trained.items()}, spec)
    unet = StableDiffusionPipeline.from_pretrained(model).unet
    inputs = torch.linspace(-1, 1, 4 * 64).view(1, 4, 8, 8), 7, torch.linspace(-1, 1, 77 * 32).view(1, 77, 32)
    base = unet(*inputs).sample
    pipeline = StableDiffusionPipeline.from_pretrained(model, unet=unet)
    pipeline.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(unet(*inputs).sample, parts.denoiser.eval()(*inputs).sample)
    assert (unet(*inputs).sample - base).abs().max() > 1e-2


@pytest.mark.parametrize("layout", [None, export.LORA_FILE, export.WEBUI_LORA])
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_trained_text_encoders_are_in_the_result(eps_model, xl_model, tmp_path, kind, layout):
    """layout: the file of a LoRA; None: all weights."""
    model = {"sd": eps_model, "xl": xl_model}[kind]
    settings = {"train_text_encoder": True, "lora_rank": 2 if layout else 0, "lora_alpha": 3}
    source, parts, spec, trained = prepared(model, **settings)
    with torch.no_grad():
        for number, weight in enumerate(trained.values()):
            weight.add_(torch.linspace(-0.3, 0.2, weight.numel()).view_as(weight) * (1 + number % 3))
    state = {name: weight.detach() for name, weight in trained.items()}
    export.export(tmp_path / "out", source, parts, state, spec)
    base = DiffusionPipeline.from_pretrained(model)
    pipeline = DiffusionPipeline.from_pretrained(model if layout else tmp_path / "out")
    if layout:
        pipeline.load_lora_weights(tmp_path / "out", weight_name=layout)
    else:
        for name in parts.text_encoders:
            found, stored = (
                load_file(folder / name / "model.safetensors") for folder in (tmp_path / "out", model)
            )
            # As in published files: older transformers read no other names.
            assert all(key.startswith(("text_model.", "text_projection.")) for key in found)
            assert len(found) == len(stored)
    tokens = parts.token_ids(["a red cross", ""], 1)
    loaded, base = ({name: getattr(each, name) for name in parts.text_encoders} for each in (pipeline, base))
    found, wanted, before = (
        parts.architecture.encode(encoders, tokens) for encoders in (loaded, parts.text_encoders, base)
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
        assert (value - before[name]).abs().max() > 0.1


def test_frozen_weights_of_a_trained_text_encoder_stay(xl_model, tmp_path):
    """The last layer, which SDXL does not use, whatever type and names it is stored with."""
    model = shutil.copytree(xl_model, tmp_path / "model")
    file = model / "text_encoder/model.safetensors"
    stored = {f"text_model.{n.removeprefix('text_model.')}": w.half() for n, w in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    exported(model, tmp_path / "out", shift=1, train_text_encoder=True)
    found = load_file(tmp_path / "out/text_encoder/model.safetensors")
    as_it_was = {name for name, weight in found.items() if torch.equal(weight, stored[name].float())}
    assert found.keys() == stored.keys() and {weight.dtype for weight in found.values()} == {torch.float32}
    assert as_it_was == {n for n in stored if ".layers.1." in n or "final_layer_norm" in n}


@pytest.mark.parametrize("name", ["unet", "vae", "model_index.json"])
def test_a_killed_export_leaves_no_loadable_half(model, tmp_path, monkeypatch, name):
    folder = exported(model, tmp_path / "out")  # an earlier result
    replace = Path.replace

    def die(self, target):
        if self.name == name:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", die)
        exported(model, folder, shift=0.1)
    assert not is_exported(folder, lora=False)
    with pytest.raises(OSError, match="model_index"):
        StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    exported(model, folder, shift=0.1)
    assert snapshot(folder) == snapshot(exported(model, tmp_path / "undisturbed", shift=0.1))


def test_a_failed_export_leaves_the_earlier_result(model, tmp_path, monkeypatch):
    folder = exported(model, tmp_path / "out")
    before = snapshot(folder)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(export, "save_file", full)
        exported(model, folder, shift=0.1)
    assert {n: h for n, h in snapshot(folder).items() if not n.startswith(".")} == before


def test_checkpoints_beside_the_result_are_left_alone(model, tmp_path):
    kept = tmp_path / "out/checkpoint-000001/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")
    exported(model, tmp_path / "out")
    assert kept.read_bytes() == b"kept"


def test_a_base_in_half_precision_gives_a_result_that_generates(tmp_path):
    base = make_tiny_pipeline(tmp_path / "half", dtype=torch.float16)
    folder = exported(base, tmp_path / "out")
    name = "text_encoder/model.safetensors"
    assert snapshot(folder)[name] == snapshot(base)[name]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    kinds = {part: next(getattr(pipeline, part).parameters()).dtype for part in ("unet", "text_encoder")}
    assert set(kinds.values()) == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a circle", height=32, width=32, num_inference_steps=1).images[0].size == (32, 32)


def image(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    output = pipeline("a red cross", height=32, width=32, num_inference_steps=2, generator=generator)
    return output.images[0].tobytes()


def trained_lora(model, folder, **settings) -> Path:
    """A LoRA of U-Net and text encoder, all of whose weights have an effect."""
    source, parts, spec, state = prepared(model, train_text_encoder=True, lora_rank=2, **settings)
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(weight.shape, generator=generator) * 0.2 for name, weight in state.items()}
    export.export(folder, source, parts, state, spec)
    return folder


def test_a_lora_in_kohyas_layout_gives_the_same_image(model, tmp_path):
    """Loaded by diffusers from either file, with an alpha that is not the rank."""
    folder = trained_lora(model, tmp_path / "out", lora_alpha=5)
    images = {}
    for name in (LORA_FILE, export.WEBUI_LORA):
        pipeline = StableDiffusionPipeline.from_pretrained(model)
        pipeline.load_lora_weights(folder, weight_name=name)
        images[name] = image(pipeline)
    assert images[LORA_FILE] == images[export.WEBUI_LORA]
    assert images[LORA_FILE] != image(StableDiffusionPipeline.from_pretrained(model))


def test_the_keys_of_kohyas_layout(model, tmp_path):
    found = load_file(trained_lora(model, tmp_path / "out", lora_alpha=5) / export.WEBUI_LORA)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert found[f"{layer}.lora_down.weight"].shape == (2, 8)
    assert found[f"{layer}.lora_up.weight"].shape == (8, 2)
    assert found[f"{layer}.alpha"] == 5
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in found
    assert all(name.startswith(("lora_unet_", "lora_te_text_model_")) for name in found)


def test_the_keys_of_kohyas_layout_for_two_text_encoders(xl_model, tmp_path):
    """As kohya's own trainer writes them; with SDXL no name begins with lora_te_."""
    found = load_file(trained_lora(xl_model, tmp_path / "out") / export.WEBUI_LORA)
    layer = "text_model_encoder_layers_0_self_attn_q_proj"
    assert found[f"lora_te1_{layer}.lora_down.weight"].shape == (2, 32)
    assert found[f"lora_te2_{layer}.lora_down.weight"].shape == (2, 16)
    beginnings = ("lora_unet_", "lora_te1_text_model_", "lora_te2_text_model_")
    assert all(name.startswith(beginnings) for name in found)


def all_weights(pipeline) -> dict[str, torch.Tensor]:
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
    return {f"{part}.{name}": w for part, module in parts.items() for name, w in module.state_dict().items()}


def richer_model(folder, hidden_act) -> Path:
    """Two layers a block, every kind of block, three sizes: all that the original's names depend on."""
    pipeline = StableDiffusionPipeline.from_pretrained(make_tiny_pipeline(folder / "base"))
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=32,
        norm_num_groups=4,
    )
    config = pipeline.text_encoder.config
    config.hidden_act = hidden_act
    text_encoder = type(pipeline.text_encoder)(config)
    StableDiffusionPipeline(
        **{**pipeline.components, "unet": unet, "text_encoder": text_encoder}, requires_safety_checker=False
    ).save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])  # Stable Diffusion 1.x, 2.x
def test_the_single_file_holds_the_same_weights(tmp_path, hidden_act):
    model = richer_model(tmp_path, hidden_act)
    folder = exported(model, tmp_path / "out", shift=0.01, export_single_file=True)
    found = StableDiffusionPipeline.from_single_file(
        folder / export.WEBUI_MODEL, config=str(folder), local_files_only=True, safety_checker=None
    )
    wanted = all_weights(StableDiffusionPipeline.from_pretrained(folder))
    weights = all_weights(found)
    assert weights.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_by_choice(model, tmp_path, name, dtype, lora_rank):
    settings = {"lora_rank": lora_rank, "export_dtype": name, "export_single_file": True}
    folder = exported(model, tmp_path / "out", **settings)
    files = list(folder.rglob("*.safetensors"))
    assert len(files) == (2 if lora_rank else 4)
    for file in files:
        kinds = {weight.dtype for weight in load_file(file).values() if weight.is_floating_point()}
        alphas = {torch.float32} if file.name == "lora.safetensors" else set()
        assert kinds - alphas == {dtype}, file
    pipeline = StableDiffusionPipeline.from_pretrained(folder if not lora_rank else model)
    if lora_rank:
        pipeline.load_lora_weights(folder)
    assert image(pipeline)
