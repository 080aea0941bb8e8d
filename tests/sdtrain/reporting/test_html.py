"""The report as a page: the figures, the curve, nothing that runs."""

from html.parser import HTMLParser

import pytest

from sdtrain.reporting import html
from sdtrain.reporting.html import Curves
from sdtrain.reporting.tracker import tracker


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.data = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.data.append(data.strip())


REPORT = {
    "pretrained_model_name_or_path": "/mnt/model/sd",
    "recipe": "dreambooth",
    "lora_rank": 0,
    "plugin": "torch_ddp",
    "precision": "bf16",
    "resolution": 512,
    "device_name": "cpu",
    "world_size": 8,
    "global_batch_size": 16,
    "num_examples": 1200,
    "steps": 1007,
    "finished": "2026-11-21T13:29:09+00:00",
    "resumed_from_step": 0,
    "seconds": 3725.4,
    "device_hours": 8.2786,
    "images_per_second": 128.44,
    "peak_memory_bytes": 20_500_000_000,
    "validation_prompts": ["a <red> cross", "圆"],
    "final_loss": 0.123456789,
    "mean_loss": 0.25,
    "validation_loss": None,
    "versions": {"a": "1"},
}
TRAINING = [(1, 3.0), (2, 1.0), (3, 2.0)]


def test_what_people_look_for_first():
    seen = Seen(html.render(REPORT, Curves(TRAINING), None))
    assert "DreamBooth: 1,007 steps" in seen.data
    about = (
        "/mnt/model/sd, 1,200 images at 512 pixels, 16 a step; 8 × cpu, torch_ddp, precision bf16; "
        "finished 2026-11-21 13:29 UTC"
    )
    assert about in seen.data and "time" in seen.data
    tiles = {"128", "1:02:05", "8.28", "20.5 GB", "0.25"}
    assert tiles <= set(seen.data)
    assert "held-out loss" not in seen.data
    measured = {**REPORT, "validation_loss": 0.125, "images_per_second": None, "lora_rank": 8}
    seen = Seen(html.render(measured, Curves(TRAINING), None))
    assert {"held-out loss", "0.125", "DreamBooth, LoRA of rank 8: 1,007 steps"} <= set(seen.data)
    assert "images a second" not in seen.data


def test_all_figures_curves_and_image():
    seen = Seen(html.render(REPORT, Curves(TRAINING, [(0, 2.0), (3, 1.5)]), "samples/before_after.png"))
    assert {"0.123457", "–", "a 1", "step 0", "step 3", "held-out images"} <= set(seen.data)
    assert [tag for tag, _ in seen.tags].count("circle") == 3
    lines = [about["points"].split() for tag, about in seen.tags if tag == "polyline"]
    assert [len(line) for line in lines] == [3, 2]
    assert ("img", {"src": "samples/before_after.png", "alt": "samples"}) in seen.tags
    assert {"a <red> cross", "圆"} <= set(seen.data)
    assert ("ol", {"class": "about", "start": "0"}) in seen.tags  # as in the names of the images


def test_the_curves_are_those_of_the_events(tmp_path):
    with tracker(tmp_path, 0, writing=True) as tracking:
        for step in (1, 2):
            tracking.scalars({"train/loss": step / 4, "train/learning_rate": 1.0}, step)
        tracking.scalars({"validation/loss": 0.5}, 2)
    assert html.curves(tmp_path) == Curves([(1, 0.25), (2, 0.5)], [(2, 0.5)])


def test_steps_that_were_taken_again_have_the_last_loss_and_nothing_is_logged(tmp_path, caplog):
    for first, loss in ((0, 1.0), (1, 2.0)):
        with tracker(tmp_path, first, writing=True) as tracking:
            for step in (first + 1, first + 2):
                tracking.scalars({"train/loss": loss}, step)
    assert html.curves(tmp_path).training == [(1, 1.0), (2, 2.0), (3, 2.0)]
    assert not caplog.records


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_any_curve(points):
    text = html.render(REPORT, Curves(points), None)
    assert ("Too few" in text) == (len(points) < 2)
    assert "<img" not in text


def test_what_users_typed_does_not_run():
    text = html.render({**REPORT, "plugin": "<script>alert(1)</script>"}, Curves([]), '"><script>')
    assert "script" not in {tag for tag, _ in Seen(text).tags}
