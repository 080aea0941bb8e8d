"""Images that cannot be used, met where all are gone through before training: buckets and caches.

Tests of sdtrain/data/scan.
"""

import json
import re

import pytest
from PIL import Image

from sddemo.scenes import caption, render, scenes
from tests.support.worker import losses

SHAPES = [(64, 48), (64, 64), (90, 64), (48, 64), (96, 40), (64, 64), (64, 52), (40, 96)]
NO_IMAGE, TRUNCATED, NO_TEXT = 1, 2, 6  # of which the second still has a header with its size
SETTINGS = {
    "bad_samples": "skip",
    "center_crop": True,
    "random_flip": True,
    "verify_images": "none",
    "max_train_steps": 9,
}
BUCKETS = {"aspect_ratio_buckets": True, "bucket_reso_steps": 8}


@pytest.fixture
def spoilt(tmp_path):
    """Eight drawings with captions in text files; three of them are no use, each for another reason."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for number, (scene, size) in enumerate(zip(scenes(len(SHAPES), seed=0), SHAPES, strict=True)):
        render(scene).resize(size).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption(scene))
    (folder / f"{NO_IMAGE}.png").write_bytes(b"no image")
    whole = (folder / f"{TRUNCATED}.png").read_bytes()
    (folder / f"{TRUNCATED}.png").write_bytes(whole[: len(whole) // 2])
    (folder / f"{NO_TEXT}.txt").write_bytes(b"\xff\xfe\xff")
    return folder


def named(output, folder) -> list[str]:
    found = json.loads((output / "report.json").read_text())["bad_samples"]
    return [name.removeprefix(f"{folder}/") for name in found]


@pytest.mark.parametrize("more", [{}, BUCKETS], ids=["squares", "buckets"])
def test_caches_change_nothing(train, spoilt, capfd, more):
    settings = {**SETTINGS, **more, "train_data_dir": spoilt}
    plain = train("plain", train_batch_size=2, **settings)
    capfd.readouterr()
    both = train("both", ranks=2, cache_latents="disk", cache_text_embeddings="memory", **settings)
    assert losses(both) == pytest.approx(losses(plain), rel=1e-5)
    skipped = re.findall(r"skipped: .*/(\d\.\w+): ", capfd.readouterr().out)
    assert sorted(skipped) == ["1.png", "2.png", "6.txt"]  # each is named once
    assert named(both, spoilt) == named(plain, spoilt) == ["1.png", "2.png", "6.txt"]


def test_they_are_those_that_a_dataset_of_stand_ins_gives(train, spoilt, tmp_path):
    """The image and the shape of the next one, for one without a header."""
    settings = {**SETTINGS, **BUCKETS, "cache_latents": "memory"}
    (spoilt / f"{NO_TEXT}.txt").write_text("a circle")
    Image.new("RGB", SHAPES[TRUNCATED], "red").save(spoilt / f"{TRUNCATED}.png")
    cached = train("cached", **settings, train_data_dir=spoilt)
    for suffix in ("png", "txt"):
        there = (spoilt / f"{TRUNCATED}.{suffix}").read_bytes()
        (spoilt / f"{NO_IMAGE}.{suffix}").write_bytes(there)
    assert losses(cached) == losses(train("plain", **settings, train_data_dir=spoilt))


@pytest.mark.parametrize(("where", "names"), [(BUCKETS, "14"), ({"cache_latents": "memory"}, "12")])
def test_more_than_allowed_are_66_before_the_first_step(train, spoilt, capfd, where, names):
    """A cache is given up where it meets one too many."""
    (spoilt / "4.png").write_bytes(b"no image either")
    (spoilt / f"{NO_TEXT}.txt").write_text("a circle")
    output = train(code=66, ranks=2, train_data_dir=spoilt, **{**SETTINGS, "max_bad_samples": 1}, **where)
    error = capfd.readouterr().err
    assert sorted(set(re.findall(r"/(\d)\.png: ", error))) == list(names)
    assert "2 images cannot be used (max_bad_samples=1)" in error
    assert "Traceback" not in error
    assert not list((output / "checkpoint").iterdir())


def test_a_stop_while_all_are_gone_through_is_obeyed(train, spoilt, monkeypatch, tmp_path):
    from sdtrain.data import scan

    calls = []
    monkeypatch.setattr(scan, "_BLOCK", 2)
    monkeypatch.setattr(scan, "_read", lambda look, images, index: calls.append(index) or (64, 64))
    monkeypatch.setenv("SDJOB_STOP_FILE", str(tmp_path / "stop"))
    original = scan.Progress.show

    def show(self, done, note=""):
        (tmp_path / "stop").touch()
        original(self, done, note)

    monkeypatch.setattr(scan.Progress, "show", show)
    train(code=75, train_data_dir=spoilt, **SETTINGS, **BUCKETS)
    assert sorted(calls) == [0, 1]
