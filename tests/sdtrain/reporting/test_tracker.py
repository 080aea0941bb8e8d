"""The trackers of a run: the same metrics in metrics.jsonl and in TensorBoard."""

from dataclasses import fields
from io import BytesIO

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting import metrics
from sdtrain.reporting import tracker as tracker_module
from sdtrain.reporting.metrics import StepMetrics
from tests.support.worker import scalars

SPEC = RunSpec(pretrained_model_name_or_path="m", output_dir="o", learning_rate=1e-4)


def tracker(layout, first_step, *, writing):
    return tracker_module.tracker(SPEC, layout, first_step, print, writing=writing)


def test_every_metric_is_in_both(tmp_path):
    layout = OutputLayout(tmp_path)
    values = {name: number for number, name in enumerate(metrics.TAGS, start=1)}
    measured = StepMetrics(3, **values, time=10.0)
    with tracker(layout, 0, writing=True) as tracking:
        tracking.log(measured)
    assert scalars(tmp_path) == {tag: {3: values[name]} for name, tag in metrics.TAGS.items()}
    assert metrics.read(layout.metrics)[1:] == [measured]


def test_the_tags_that_others_read():
    names = ("loss", "learning_rate", "grad_norm", "epoch", "skipped_steps")
    assert {name: metrics.TAGS[name] for name in names} == {name: f"train/{name}" for name in names}
    assert metrics.TAGS["images_per_second"] == "speed/images_per_second"
    assert metrics.TAGS["peak_memory_gib"] == "speed/peak_memory_gib"
    assert metrics.TAGS["validation_loss"] == "validation/loss"
    assert len(metrics.TAGS) == len(fields(StepMetrics)) - 2  # step and time


def test_images_and_texts(tmp_path):
    layout = OutputLayout(tmp_path)
    with tracker(layout, 0, writing=True) as tracking:
        tracking.image("validation", Image.new("RGB", (4, 3), (7, 8, 9)), 2)
        assert not list(layout.tensorboard.iterdir())  # TensorBoard is imported for the first metrics
        tracking.log(StepMetrics(1, loss=1.0))
        tracking.text("settings", "--seed=7")
        (file,) = layout.tensorboard.iterdir()
    events = EventAccumulator(str(file)).Reload()
    tags = events.Tags()
    (shown,) = events.Images("validation")
    assert (shown.step, shown.width, shown.height) == (2, 4, 3)
    assert Image.open(BytesIO(shown.encoded_image_string)).getpixel((1, 1)) == (7, 8, 9)
    assert (tags["images"], tags["tensors"]) == (
        ["validation"],
        ["custom_scalars__config__", "settings/text_summary"],
    )


def test_a_resumed_run_repeats_the_steps_after_its_checkpoint_in_both(tmp_path):
    layout = OutputLayout(tmp_path)
    for first, loss in ((0, 1.0), (1, 2.0)):
        with tracker(layout, first, writing=True) as tracking:
            for step in (first + 1, first + 2):
                tracking.log(StepMetrics(step, loss=loss))
    losses = {1: 1.0, 2: 2.0, 3: 2.0}
    assert scalars(tmp_path)["train/loss"] == losses
    assert {each.step: each.loss for each in metrics.read(layout.metrics)[1:]} == losses


def test_no_steps_are_lost_when_the_clock_is_set_back(tmp_path, monkeypatch):
    """Three starts, each an hour earlier than the one before by the clock, and resumed from its last step."""
    layout, now = OutputLayout(tmp_path), [1_700_000_000.0]
    monkeypatch.setattr(tracker_module.time, "time", lambda: now[0])
    for first in (0, 2, 4):
        with tracker(layout, first, writing=True) as tracking:
            for step in (first + 1, first + 2):
                tracking.log(StepMetrics(step, loss=float(step), time=now[0]))
        now[0] -= 3600
    losses = {step: float(step) for step in range(1, 7)}
    assert scalars(tmp_path)["train/loss"] == losses
    assert {each.step: each.loss for each in metrics.read(layout.metrics)[1:]} == losses


def test_other_ranks_write_nothing(tmp_path):
    with tracker(OutputLayout(tmp_path), 0, writing=False) as tracking:
        tracking.log(StepMetrics(1, loss=1.0))
        tracking.image("validation", Image.new("RGB", (4, 4)), 1)
        tracking.text("settings", "--seed=7")
        tracking.flush()
    assert list(tmp_path.iterdir()) == []
