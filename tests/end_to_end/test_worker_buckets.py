"""Images of many shapes: the same losses on any number of processes, after a resume, and from a cache.

Tests of sdtrain.data.buckets and sdtrain.data.streams in a run, and of sdtrain.recipes.text_to_image.
"""

import json
import os
import shutil
import signal

import pytest
from PIL import ImageFilter

from sdjob.output.layout import write_manifest
from tests.support.worker import losses, scalars

SHAPES = [(64, 48), (90, 64), (64, 64), (48, 64), (96, 40)]
SETTINGS = {
    "aspect_ratio_buckets": True,
    "bucket_reso_steps": 8,
    "center_crop": True,
    "random_flip": True,
    "max_train_steps": 5,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Five drawings, each of its own shape, with captions."""
    from sddemo.scenes import caption, render, scenes

    folder = tmp_path_factory.mktemp("shapes")
    rows = []
    for number, (scene, size) in enumerate(zip(scenes(len(SHAPES), seed=0), SHAPES, strict=True)):
        render(scene).resize(size).filter(ImageFilter.BLUR).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption(scene)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_buckets(train, at_step, shapes, capfd):
    settings = {**SETTINGS, "train_data_dir": shapes}
    alone = train("alone", train_batch_size=2, **settings)
    assert "buckets: " in (said := capfd.readouterr().out)
    assert "48×16: 1" in said and "32×32: 1" in said
    both = train("both", ranks=2, cache_latents="disk", **settings)
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train("stopped", code=75, train_batch_size=2, **settings)
    at_step(0)
    assert losses(train("stopped", train_batch_size=2, **settings)) == losses(alone)
    # With another batch size it goes on at the next epoch and says so; so does a checkpoint of version 0.1.
    wider = {**settings, "train_batch_size": 3, "max_train_steps": 9}
    capfd.readouterr()
    undisturbed = losses(train("stopped", **wider))
    assert "training continues at the next epoch" in capfd.readouterr().out
    older = alone / "checkpoint/checkpoint-000005"
    shutil.rmtree(alone / "checkpoint")
    shutil.copytree(both / "checkpoint/checkpoint-000005", older)
    state = json.loads((older / "state.json").read_text())
    del state["global_batch"]
    (older / "state.json").write_text(json.dumps({**state, "past": [{"steps": 5, "global_batch": 2}]}))
    write_manifest(older)
    train("alone", **{**wider, "max_train_steps": 7})
    assert losses(train("alone", **wider)) == pytest.approx(undisturbed, rel=1e-5)


def test_images_of_the_class_take_the_shape_of_their_batch(train, shapes):
    prior = {
        "recipe": "dreambooth",
        "instance_data_dir": shapes,
        "with_prior_preservation": True,
        "class_prompt": "a cross",
        "num_class_images": 2,
    }
    plain = train("plain", **SETTINGS, **prior)
    cached = train("cached", cache_latents="memory", **SETTINGS, **prior)
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-6)
    assert scalars(plain)["train/epoch"][5] == 1.0
