"""The report as a page: values, curves, images, and nothing that runs."""

from html.parser import HTMLParser

import pytest

from sdtrain.reporting import html
from sdtrain.reporting.html import Sheet
from sdtrain.reporting.metrics import StepMetrics


class Page(HTMLParser):
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
SAMPLES = Sheet("samples/before_after.png", REPORT["validation_prompts"])
INPUTS = Sheet("samples/inputs.png", ["sks \x1b"])
TRAINING = [StepMetrics(step, loss=loss) for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0))]


def test_what_people_look_for_first():
    page = Page(html.render(REPORT, TRAINING, None, None))
    assert "DreamBooth: 1,007 steps" in page.data
    about = (
        "/mnt/model/sd, 1,200 images at 512 pixels, 16 per step; 8 × cpu, torch_ddp, precision bf16; "
        "finished 2026-11-21 13:29 UTC"
    )
    assert about in page.data and "time" in page.data
    tiles = {"128", "1:02:05", "8.28", "20.5 GB", "0.25"}
    assert tiles <= set(page.data)
    assert "held-out loss" not in page.data
    measured = {**REPORT, "validation_loss": 0.125, "images_per_second": None, "lora_rank": 8}
    page = Page(html.render(measured, TRAINING, None, None))
    assert {"held-out loss", "0.125", "DreamBooth, LoRA of rank 8: 1,007 steps"} <= set(page.data)
    assert "images per second" not in page.data


def test_all_values_curves_and_image():
    last = StepMetrics(3, loss=2.0, validation_loss=1.5)
    metrics = [StepMetrics(0, validation_loss=2.0), *TRAINING[:2], last]
    page = Page(html.render(REPORT, metrics, SAMPLES, INPUTS))
    assert {"0.123457", "–", "a 1", "step 0", "step 3", "held-out images"} <= set(page.data)
    assert [tag for tag, _ in page.tags].count("circle") == 3
    curves = [attributes["points"].split() for tag, attributes in page.tags if tag == "polyline"]
    assert [len(curve) for curve in curves] == [3, 2]
    assert ("img", {"src": "samples/before_after.png", "alt": "samples"}) in page.tags
    assert ("img", {"src": "samples/inputs.png", "alt": "training images"}) in page.tags
    assert {"a <red> cross", "圆", r"sks \x1b"} <= set(page.data)
    assert ("ol", {"class": "about", "start": "0"}) in page.tags  # as in the names of the images


def lines(metrics):
    """The points of each curve, in pixels."""
    page = Page(html.render(REPORT, metrics, None, None))
    paths = [attributes["points"].split() for tag, attributes in page.tags if tag == "polyline"]
    return [[tuple(map(float, point.split(","))) for point in path] for path in paths]


def test_the_curve_of_training_is_the_running_mean_and_that_of_held_out_images_is_not():
    mean, held_out = lines([StepMetrics(1, loss=0.0), StepMetrics(11, loss=1.0, validation_loss=0.5)])
    assert mean == [(50.0, 235.0), (775.0, 124.5)]  # 0.1 / 0.19 of the height: no bias towards the first
    assert held_out == [(775.0, 130.0)]


def test_long_runs_have_curves_of_at_most_2000_points():
    metrics = [StepMetrics(step, loss=1.0) for step in range(5000)]
    assert len(lines(metrics)[0]) == 1667
    assert len(lines(metrics[:2000])[0]) == 2000


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_any_curve(points):
    text = html.render(REPORT, [StepMetrics(step, loss=loss) for step, loss in points], None, None)
    assert ("Too few" in text) == (len(points) < 2)
    assert "<img" not in text


def test_what_users_typed_does_not_run():
    text = html.render(
        {**REPORT, "plugin": "<script>alert(1)</script>"}, [], Sheet('"><script>', ["<script>"]), None
    )
    assert "script" not in {tag for tag, _ in Page(text).tags}
