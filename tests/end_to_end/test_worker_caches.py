"""Caches change the time of a step and nothing else; and they notice what has changed.

Tests of sdtrain.data.cached_encodings and sdtrain.data.examples.
"""

import json
import re
import shutil

import pytest
from PIL import Image, ImageOps
from safetensors.torch import load_file

from sdjob.automatic.example_sizes import cache_entries
from sdjob.model.pipeline import find_pipeline
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec
from tests.support.worker import losses, snapshot

CROPPED = {"center_crop": True}
BOTH = {"cache_latents": "disk", "cache_text_embeddings": "disk"}
PRIOR = {
    "recipe": "dreambooth",
    "with_prior_preservation": True,
    "class_prompt": "a photo of a cross",
    "num_class_images": 3,
}
OFF = {"cache_latents": "no", "cache_text_embeddings": "no"}
# Entries are made in batches of their own, so they equal those of a step to rounding.
FP32, BF16 = 1e-6, 1e-2
CASES = {
    "flips and empty prompts": (
        "memory",
        {"random_flip": True, "proportion_empty_prompts": 0.3, "lora_rank": 2, "max_train_steps": 8},
        FP32,
    ),
    "bf16": ("disk", {"mixed_precision": "bf16", "dataloader_num_workers": 1}, BF16),
    "prior": ("disk", {**PRIOR, "gradient_accumulation_steps": 2}, FP32),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_losses_with_and_without(train, eps_model, case):
    where, settings, tolerance = CASES[case]
    settings = {**CROPPED, **settings}
    plain = train("plain", **OFF, **settings)
    cached = train("cached", cache_latents=where, cache_text_embeddings=where, **settings)
    assert losses(cached) == pytest.approx(losses(plain), rel=tolerance, abs=0)
    assert (cached / "cache").exists() == (where == "disk")
    if where == "disk":
        assert_as_estimated(cached / "cache", eps_model, settings)


def assert_as_estimated(folder, model, settings):
    """The launcher estimates how many entries there will be, and how large."""
    given = {"recipe": "text_to_image", "resolution": 32, "cache_latents": "disk"}
    given |= {**settings, "cache_text_embeddings": "disk"}
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", **given)
    pipeline = find_pipeline(model, None, allow_pickle=False)
    images = 3 if spec.recipe == "dreambooth" else 6
    for entries in cache_entries(spec, pipeline, images, Topology("cpu", 1)):
        files = list((folder / entries.name).iterdir())
        assert len(files) <= 2  # one of each stream, and not one an entry
        assert len({name.partition("/")[0] for file in files for name in load_file(file)}) == entries.most
        size = sum(file.stat().st_size for file in files)
        assert entries.most * entries.each < size <= entries.total + 512


def test_two_processes_make_one_cache(train):
    settings = {**CROPPED, **PRIOR, "random_flip": True}
    alone = train("alone", train_batch_size=2, **OFF, **settings)
    for where in ("memory", "disk"):
        both = train(where, ranks=2, cache_latents=where, cache_text_embeddings=where, **settings)
        assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    before = snapshot(both / "cache")
    shutil.copytree(both / "cache", alone / "cache")
    train("alone", train_batch_size=2, max_train_steps=4, **BOTH, **settings)
    assert snapshot(alone / "cache") == before  # it does not matter how many made it, or run with it


def made(capsys) -> list[int]:
    """How many entries the last run had to make: latents, then prompts."""
    found = dict(re.findall(r"(latents|prompts).*cached, (\d+) to encode", capsys.readouterr().out))
    return [int(found["latents"]), int(found["prompts"])]


def test_a_changed_image_or_caption_is_noticed_and_the_rest_is_used_again(train, captioned, tmp_path, capsys):
    data = shutil.copytree(captioned, tmp_path / "data")
    settings = {**CROPPED, **BOTH, "train_data_dir": data, "cache_dir": tmp_path / "cache"}
    train("first", **settings)
    assert made(capsys) == [6, 6]
    with Image.open(data / "3.png") as image:
        ImageOps.mirror(ImageOps.flip(image)).save(data / "3.png")
    rows = data / "metadata.jsonl"
    rows.write_text(rows.read_text().replace('"text": "', '"text": "truly ', 1))
    changed = train("changed", **settings)
    assert made(capsys) == [1, 1]
    plain = train("plain", **{**settings, **OFF})
    assert losses(changed) == pytest.approx(losses(plain), rel=FP32)


def test_another_resolution_or_type_has_entries_of_its_own(train, eps_model, tmp_path, capsys):
    settings = {**CROPPED, **BOTH, "cache_dir": tmp_path / "cache", "max_train_steps": 1}
    other_unet = shutil.copytree(eps_model, tmp_path / "model")
    config = other_unet / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 8}))
    train("first", **settings)
    capsys.readouterr()
    for name, change, wanted in (
        ("resolution", {"resolution": 40}, [6, 0]),
        ("precision", {"mixed_precision": "bf16"}, [6, 6]),
        ("same VAE and text encoder", {"pretrained_model_name_or_path": other_unet}, [0, 0]),
    ):
        train(name, **{**settings, **change})
        assert made(capsys) == wanted, name


def test_a_bad_image_is_named_while_the_cache_is_made(train, captioned, tmp_path, capfd):
    data = shutil.copytree(captioned, tmp_path / "data")
    (data / "1.png").write_bytes(b"no image")
    train(ranks=2, code=66, train_data_dir=data, verify_images="none", cache_latents="memory", **CROPPED)
    assert str(data / "1.png") in capfd.readouterr().err


SQUARE = {"max_train_steps": 6, "train_batch_size": 4}  # four times through six square images


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_without_a_setting_everything_is_encoded_once_on_any_number_of_ranks(train, ranks, capfd):
    """Cached by default = not cached, and to the bit the same on any number of ranks but for the order of sums."""
    plain = train("plain", **SQUARE, **OFF)
    given = {**SQUARE, "train_batch_size": 4 // ranks}
    found = train("automatic", ranks=ranks, **given)
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
    said = capfd.readouterr().out
    assert "cache_latents=memory (auto: each image is used 4 times)" in said
    assert "latents of the captioned images: 0 of 6 cached, 6 to encode" in said


def test_a_resume_without_a_setting_is_exact(train):
    whole = train("whole", **SQUARE)
    train("halves", **{**SQUARE, "max_train_steps": 3})
    assert losses(train("halves", **SQUARE)) == losses(whole)


def test_images_that_are_cropped_are_not_cached_without_a_setting(train, captioned, tmp_path, capfd):
    data = shutil.copytree(captioned, tmp_path / "data")
    with Image.open(data / "3.png") as image:
        image.crop((0, 0, image.width, image.height - 9)).save(data / "3.png")
    train(train_data_dir=data, **SQUARE)
    said = capfd.readouterr().out
    assert "cache_latents=no (auto: center_crop=0 crops an image differently each time)" in said
    assert "cache_text_embeddings=memory" in said
