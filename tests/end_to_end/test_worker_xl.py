"""Stable Diffusion XL: the same losses on any number of processes and with caches, and its results."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from sdjob.dataset.detect import find_dataset
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from sdtrain.data.sampling import Sample, sample_generator
from sdtrain.data.sources import open_source
from sdtrain.data.training_images import TrainingImages
from sdtrain.export import export
from sdtrain.model import load
from tests.support import colossal, worker
from tests.support.worker import losses

STEPS = 2


@pytest.fixture
def inputs(xl_model, captioned, instance):
    return {
        "pretrained_model_name_or_path": xl_model,
        "train_data_dir": captioned,
        "instance_data_dir": instance,
        "center_crop": True,
    }


def test_the_result_is_a_pipeline_of_its_architecture(train):
    output = train(train_text_encoder=True, max_train_steps=1)
    pipeline = DiffusionPipeline.from_pretrained(output / "checkpoint")
    classes = [type(part).__name__ for part in (pipeline, pipeline.text_encoder, pipeline.text_encoder_2)]
    assert classes == ["StableDiffusionXLPipeline", "CLIPTextModel", "CLIPTextModelWithProjection"]
    report = json.loads((output / "report.json").read_text())
    assert report["trained_parts"] == ["unet", "text_encoder", "text_encoder_2"]


CACHED = {"cache_latents": "memory", "cache_text_embeddings": "disk", "dataloader_num_workers": 1}
SETTINGS = {
    "frozen": {"proportion_empty_prompts": 0.3, "max_token_length": 150},
    "trained": {"train_text_encoder": True, "text_encoder_lr": 1e-4, "lora_rank": 2},
}


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("frozen", CACHED),
        ("frozen", {"ranks": 2, **CACHED}),
        ("trained", {"ranks": 2}),
        # One of the two processes generates: the other must not wait for the weights that it gathers for that.
        ("trained", {"ranks": 2, "plugin": "fsdp", "validation_prompts": ["a cross"]}),
    ],
)
def test_the_same_losses_however_they_are_computed(train, what, how):
    wanted = losses(train("plain", max_train_steps=STEPS, train_batch_size=2, **SETTINGS[what]))
    batch = 2 // how.get("ranks", 1)
    found = train(max_train_steps=STEPS, train_batch_size=batch, **SETTINGS[what], **how)
    assert losses(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ({"plugin": "low_level_zero", "mixed_precision": "no"}, 1e-5),
        ({"plugin": "gemini", "mixed_precision": "bf16"}, 2e-2),
    ],
    ids=["low_level_zero", "gemini"],
)
def test_colossal_ai_trains_both_text_encoders(train, inputs, tmp_path, how, tolerance):
    import sdtrain.strategies.colossalai  # noqa: F401  (once, before the forks)

    settings = {"max_train_steps": STEPS, "train_text_encoder": True, "validation_prompts": ["a cross"]}
    wanted = losses(train("plain", **{**settings, "validation_prompts": None}, train_batch_size=2))
    given = {**inputs, "output_dir": tmp_path / "shared", "device": "cuda", **settings}
    assert worker.in_ranks(2, colossal.install, **given, **how) == [0, 0]
    assert losses(tmp_path / "shared") == pytest.approx(wanted, rel=tolerance)


def test_a_lora_resumes_exactly_and_loads_from_both_layouts(train, xl_model):
    settings = {"lora_rank": 2, "recipe": "dreambooth", "learning_rate": 1e-1, "train_text_encoder": True}
    settings |= {"use_ema": True, "ema_decay": 0.5}
    undisturbed = train("undisturbed", max_train_steps=3, **settings)
    train(max_train_steps=1, **settings)
    output = train(max_train_steps=3, **settings)
    assert losses(output) == losses(undisturbed)
    weights, wanted = (load_file(o / f"checkpoint/{export.LORA_FILE}") for o in (output, undisturbed))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert {name.split(".")[0] for name in weights} == {"unet", "text_encoder", "text_encoder_2"}
    images = {}
    for name in (None, export.LORA_FILE, export.WEBUI_LORA):
        pipeline = DiffusionPipeline.from_pretrained(xl_model)
        pipeline.set_progress_bar_config(disable=True)
        if name:
            pipeline.load_lora_weights(output / "checkpoint", weight_name=name)
        noise = torch.Generator().manual_seed(0)
        generated = pipeline("a red cross", height=32, width=32, num_inference_steps=2, generator=noise)
        images[name] = generated.images[0].tobytes()
    assert images[export.LORA_FILE] == images[export.WEBUI_LORA] != images[None]


def test_the_vae_stays_fp32_and_samples_are_generated(train, xl_model):
    parts = load.load(
        find_pipeline(xl_model, None, allow_pickle=False), "bf16", torch.device("cpu"), allow_pickle=False
    )
    assert (parts.vae.dtype, parts.text_encoders["text_encoder_2"].dtype) == (torch.float32, torch.bfloat16)
    settings = {"validation_prompts": ["a red cross"], "num_validation_images": 1}
    output = train(mixed_precision="bf16", max_train_steps=2, **settings)
    weights = load_file(output / "checkpoint/unet/diffusion_pytorch_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    with Image.open(output / "samples/step-000002/prompt00-00.png") as image:
        assert image.size == (32, 32) and np.asarray(image).std() > 0


def test_a_missing_part_is_named(xl_model, tmp_path):
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
    """An image of 64 × 32 whose red is the column and whose green is the row."""
    folder = tmp_path_factory.mktemp("wide")
    rows, columns = np.mgrid[0:32, 0:64]
    Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)).save(folder / "0.png")
    return folder


@pytest.mark.parametrize("center_crop", [True, False])
def test_time_ids_hold_the_crop(wide, center_crop):
    """In the mirrored image, as in diffusers' script, which mirrors first and then crops."""
    info = find_dataset(wide, None, captions=False, image_column="image", caption_column="text")
    images = TrainingImages(open_source(info, None), 32, center_crop, True, "nearest", seed=3)
    seen = set()
    for position in range(12):
        sample = Sample(0, position, 0, "instance")
        pixels = images[sample]["pixels"]
        mirrored = bool(torch.rand((), generator=sample_generator(3, sample, "flip")) < 0.5)
        column, row = (int(pixels[channel, 0, 0]) for channel in (0, 1))
        height, width, top, left, *target = images.time_ids(sample).tolist()
        assert (height, width, target) == (32, 64, [32, 32])
        assert (top, left) == (row, 63 - column if mirrored else column)
        seen.add((mirrored, left))
    assert {flip for flip, _ in seen} == {True, False}
    assert len(seen) == 2 if center_crop else len(seen) > 6
