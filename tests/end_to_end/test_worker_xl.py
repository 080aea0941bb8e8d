"""Stable Diffusion XL: the losses of a plain trainer, on any number of processes, and what comes out of it."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sddemo.tiny import make_tiny_xl_pipeline
from sdjob.dataset import find_dataset
from sdjob.pipeline import find_pipeline
from sdjob.problem import JobError
from sdtrain import export, models
from sdtrain.data import TrainingImages
from sdtrain.order import Sample, draws, generator, permutation
from sdtrain.sources import open_source
from tests.sdtrain.reference import Pictures
from tests.support.worker import losses

STEPS = 3


@pytest.fixture(scope="module")
def xl_model(tmp_path_factory):
    return make_tiny_xl_pipeline(tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture
def inputs(xl_model, captioned, instance):
    return {
        "pretrained_model_name_or_path": xl_model,
        "train_data_dir": captioned,
        "instance_data_dir": instance,
        "center_crop": True,
    }


def reference(model, pictures: Pictures, seed: int, lr: float) -> list[float]:
    """Losses of a plain loop, batch 1: prompts through both encoders, sizes as diffusers' own script gives them."""
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    encoders = [
        (
            CLIPTokenizer.from_pretrained(model, subfolder=f"tokenizer{n}"),
            kind.from_pretrained(model, subfolder=f"text_encoder{n}"),
        )
        for n, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection))
    ]
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=1e-2)
    found = []
    for step in range(STEPS):
        index = int(permutation(seed, 0, len(pictures.pixels), pictures.name)[step])

        def of(purpose, step=step):
            return generator(seed, 0, step, f"{purpose}/{pictures.name}")

        with torch.no_grad():
            posterior = vae.encode(pictures.pixels[index][None]).latent_dist
            shape = posterior.mean.shape[1:]
            latents = posterior.mean + posterior.std * torch.randn(shape, generator=of("latent"))
            latents = latents * vae.config.scaling_factor
            noise = torch.randn(shape, generator=of("noise"))[None]
            timestep = torch.randint(0, 1000, (1,), generator=of("timestep"))
            hidden = []
            for tokenizer, encoder in encoders:
                text = pictures.captions[index]
                ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
                output = encoder(ids, output_hidden_states=True)
                hidden.append(output.hidden_states[-2])
        prediction = unet(
            scheduler.add_noise(latents, noise, timestep),
            timestep,
            torch.cat(hidden, dim=-1),
            added_cond_kwargs={
                "text_embeds": output.text_embeds,
                "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 32.0, 32.0]]),
            },
        ).sample
        loss = mse_loss(prediction, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_the_losses_are_those_of_a_plain_trainer(train, xl_model, captioned):
    output = train(max_train_steps=STEPS)
    wanted = reference(xl_model, Pictures.read("captioned", captioned, 32), seed=7, lr=1e-3)
    assert losses(output) == pytest.approx(wanted, rel=1e-5)
    pipeline = DiffusionPipeline.from_pretrained(output / "checkpoint")
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline"


@pytest.mark.parametrize("how", [{"ranks": 2}, {"ranks": 2, "plugin": "fsdp"}, {"cache_latents": "memory"}])
def test_the_same_losses_however_they_are_computed(train, how):
    wanted = losses(train("plain", max_train_steps=STEPS, train_batch_size=2))
    batch = 2 // how.get("ranks", 1)
    assert losses(train(max_train_steps=STEPS, train_batch_size=batch, **how)) == pytest.approx(
        wanted, rel=1e-5
    )


def test_a_lora_resumes_exactly_and_loads_from_both_layouts(train, xl_model):
    settings = {"lora_rank": 2, "recipe": "dreambooth", "learning_rate": 1e-1}
    undisturbed = train("undisturbed", max_train_steps=4, **settings)
    train(max_train_steps=2, **settings)
    output = train(max_train_steps=4, **settings)
    assert losses(output) == losses(undisturbed)
    pictures = {}
    for name in (None, export.LORA_FILE, export.WEBUI_LORA):
        pipeline = DiffusionPipeline.from_pretrained(xl_model)
        pipeline.set_progress_bar_config(disable=True)
        if name:
            pipeline.load_lora_weights(output / "checkpoint", weight_name=name)
        noise = torch.Generator().manual_seed(0)
        drawn = pipeline("a red cross", height=32, width=32, num_inference_steps=2, generator=noise)
        pictures[name] = drawn.images[0].tobytes()
    assert pictures[export.LORA_FILE] == pictures[export.WEBUI_LORA] != pictures[None]


def test_the_vae_stays_fp32_and_samples_are_drawn(train, xl_model):
    parts = models.load(
        find_pipeline(xl_model, None, allow_pickle=False), "bf16", torch.device("cpu"), allow_pickle=False
    )
    assert (parts.vae.dtype, parts.text_encoder_2.dtype) == (torch.float32, torch.bfloat16)
    settings = {"validation_prompts": ["a red cross"], "num_validation_images": 1}
    output = train(mixed_precision="bf16", max_train_steps=2, **settings)
    weights = load_file(output / "checkpoint/unet/diffusion_pytorch_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    with Image.open(output / "samples/step-000002/prompt00-00.png") as image:
        assert image.size == (32, 32) and np.asarray(image).std() > 0


def test_a_part_that_is_missing_is_named(xl_model, tmp_path):
    model = shutil.copytree(xl_model, tmp_path / "model")
    shutil.rmtree(model / "text_encoder_2")
    shutil.rmtree(model / "tokenizer_2")
    with pytest.raises(JobError) as error:
        find_pipeline(model, None, allow_pickle=False)
    assert {problem.subject.rpartition("/")[2] for problem in error.value.problems} == {
        "text_encoder_2",
        "tokenizer_2",
    }


@pytest.mark.parametrize(
    "class_name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"]
)
def test_refiner_and_inpainting_are_refused(xl_model, tmp_path, class_name):
    model = shutil.copytree(xl_model, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": class_name}))
    with pytest.raises(JobError, match=class_name):
        find_pipeline(model, None, allow_pickle=False)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A picture of 64 × 32 whose red is the column and whose green is the row."""
    folder = tmp_path_factory.mktemp("wide")
    rows, columns = np.mgrid[0:32, 0:64]
    Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)).save(folder / "0.png")
    return folder


@pytest.mark.parametrize("center_crop", [True, False])
def test_the_network_is_told_the_crop_that_was_made(wide, center_crop):
    """In the picture as it is mirrored, as diffusers' script does: it mirrors first, and crops then."""
    info = find_dataset(wide, None, captions=False, image_column="image", caption_column="text")
    images = TrainingImages(open_source(info, None), 32, center_crop, True, "nearest", seed=3)
    seen = set()
    for position in range(12):
        sample = Sample(0, position, 0, "instance")
        pixels = (images[sample]["pixel_values"] + 1) * 127.5
        mirrored = bool(torch.rand((), generator=draws(3, sample, "flip")) < 0.5)
        column, row = (int(pixels[channel, 0, 0].round()) for channel in (0, 1))
        height, width, top, left, *target = images.time_ids(sample).tolist()
        assert (height, width, target) == (32, 64, [32, 32])
        assert (top, left) == (row, 63 - column if mirrored else column)
        seen.add((mirrored, left))
    assert {flip for flip, _ in seen} == {True, False}
    assert len(seen) == 2 if center_crop else len(seen) > 6
