"""Caches change the time of a step and nothing else; and they notice what has changed.

Tests of sdtrain.data.cached_encodings and sdtrain.data.examples.
"""

import json
import re
import shutil

import pytest
from PIL import Image, ImageOps

from sdjob.model.memory_estimate import cache_entries
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
# One image is encoded at a time: exactly as in a step whose batch is one image, otherwise to rounding.
EXACT, ROUNDED = 0.0, 1e-6
CASES = {
    "flips and empty prompts": (
        "memory",
        {"random_flip": True, "proportion_empty_prompts": 0.3, "lora_rank": 2, "max_train_steps": 8},
        EXACT,
    ),
    "bf16": ("disk", {"mixed_precision": "bf16", "dataloader_num_workers": 1}, EXACT),
    "prior": ("disk", {**PRIOR, "gradient_accumulation_steps": 2}, ROUNDED),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_losses_with_and_without(train, eps_model, case):
    where, settings, tolerance = CASES[case]
    settings = {**CROPPED, **settings}
    plain = train("plain", **settings)
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
        files = list((folder / entries.name).rglob("*.safetensors"))
        assert len(files) == entries.most
        assert all(entries.each < file.stat().st_size <= entries.each + 128 for file in files)


def test_two_processes_make_one_cache(train):
    settings = {**CROPPED, **PRIOR, "random_flip": True}
    alone = train("alone", train_batch_size=2, **settings)
    for where in ("memory", "disk"):
        both = train(where, ranks=2, cache_latents=where, cache_text_embeddings=where, **settings)
        assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    assert len(snapshot(both / "cache/latents")) == 2 * (3 + 3)  # a mirrored image has an entry of its own
    before = snapshot(both / "cache")
    shutil.copytree(both / "cache", alone / "cache")
    train("alone", train_batch_size=2, max_train_steps=4, **BOTH, **settings)
    assert snapshot(alone / "cache") == before  # it does not matter how many made it, or run with it


def made(capsys) -> list[int]:
    """How many entries the last run had to make: latents, then prompts."""
    found = dict(re.findall(r"(latents|prompts).*cached, (\d+) are to be made", capsys.readouterr().out))
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
    plain = train("plain", **{**settings, "cache_latents": "no", "cache_text_embeddings": "no"})
    assert losses(changed) == losses(plain)


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
