"""The outputs of a run: metrics, TensorBoard, samples, report."""

import json
import re
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, TENSORS, EventAccumulator

from sdtrain.reporting.metrics import VALIDATION, read
from sdtrain.reporting.stopwatch import Spent
from tests.support.worker import losses, scalars

PROMPTS = ["a red cross", "ein grüner Kreis, 圆"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, eps_model, captioned):
    """One run with everything on, of two processes."""
    from tests.support import worker

    output = tmp_path_factory.mktemp("outputs") / "output"
    codes = worker.in_ranks(
        2,
        pretrained_model_name_or_path=eps_model,
        train_data_dir=captioned,
        output_dir=output,
        max_train_steps=4,
        gradient_accumulation_steps=2,
        skip_steps=1,
        lr_scheduler="linear",
        validation_prompts=PROMPTS,
        num_validation_images=3,
        validation_steps=2,
        use_ema=True,
        timed_step=3,
        reference_loss=0.0456,
        logging_steps=1,
    )
    assert codes == [0, 0]
    return output


@pytest.fixture(scope="module")
def report(run):
    return json.loads((run / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN


@pytest.fixture(scope="module")
def events(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={IMAGES: 0, TENSORS: 0})
    return events.Reload()


def test_the_timed_step_is_in_the_report_with_the_published_loss(run, report):
    timed = report["timed_step"]
    assert timed["step"] == 3
    assert timed["loss"] == pytest.approx(losses(run)[2], rel=1e-6)
    assert timed["reference_loss"] == 0.0456
    assert 0 < timed["seconds"] < 60


def test_scalars(run):
    found = scalars(run)
    assert set(found) == {
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
        "train/epoch",
        "speed/peak_memory_gib",
        "speed/images_per_second",
    }
    assert found["train/learning_rate"] == pytest.approx({1: 1e-3, 2: 7.5e-4, 3: 5e-4, 4: 2.5e-4})
    assert found["train/epoch"] == pytest.approx({step: step * 4 / 6 for step in (1, 2, 3, 4)})
    assert all(0.001 < value < 100 for value in found["train/grad_norm"].values())
    assert all(0.05 < value < 64 for value in found["speed/peak_memory_gib"].values())
    assert sorted(found["speed/images_per_second"]) == [2, 3, 4]  # the first step is not measured
    assert all(value > 0 for value in found["speed/images_per_second"].values())


def test_metrics_jsonl_holds_what_tensorboard_shows(run):
    metrics = read(run / "run/metrics.jsonl")
    assert [each.step for each in metrics] == [0, 1, 2, 3, 4]
    assert {each.step: each.loss for each in metrics[1:]} == pytest.approx(scalars(run)["train/loss"])
    assert all(before.time <= after.time for before, after in pairwise(metrics))


def test_validation_images(run, events):
    assert [event.step for event in events.Images("validation")] == [0, 2, 4]
    for step in (0, 2, 4):
        folder = run / f"samples/step-{step:06d}"
        assert json.loads((folder / "prompts.json").read_text()) == PROMPTS
        images = [Image.open(path) for path in sorted(folder.glob("*.png"))]
        assert [image.size for image in images] == [(32, 32)] * 6
    first, last = ((run / f"samples/step-00000{n}/prompt00-00.png").read_bytes() for n in (0, 4))
    assert first != last
    seeds = {(run / f"samples/step-000000/prompt00-{n:02d}.png").read_bytes() for n in range(3)}
    assert len(seeds) == 3


def test_before_and_after(run):
    """Two columns of three images, 8 pixels between; two rows with a line of text each, and a title."""
    sheet = Image.open(run / "samples/before_after.png")
    assert sheet.size == (2 * 3 * 64 + 8, 16 + 2 * (16 + 64))
    first = Image.open(run / "samples/step-000000/prompt01-02.png").resize((64, 64))
    left, top = 2 * 64, 16 + 80 + 16
    assert sheet.crop((left, top, left + 64, top + 64)).tobytes() == first.tobytes()
    last = Image.open(run / "samples/step-000004/prompt00-01.png").resize((64, 64))
    left, top = 3 * 64 + 8 + 64, 16 + 16
    assert sheet.crop((left, top, left + 64, top + 64)).tobytes() == last.tobytes()


def test_the_first_training_images(run, events):
    with Image.open(run / "samples/inputs.png") as sheet:
        size = sheet.size
    (event,) = events.Images("training images")
    assert (event.step, event.width, event.height) == (0, *size)
    prompts = json.loads((run / "samples/inputs.json").read_text())
    assert len(prompts) == 6 and all(prompts)
    shown = page_data(run)["inputs"]
    assert (shown["path"], shown["prompts"]) == ("samples/inputs.png", prompts)


def test_settings_are_a_text_in_tensorboard(events):
    (event,) = events.Tensors("settings/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    for flag in ("--recipe=text_to_image", "--max_train_steps=4", "--use_ema", "--seed=7"):
        assert f"    {flag}\n" in text + "\n"


def test_report(run, report):
    assert report.keys() == {*EXPECTED, *OTHER_KEYS, *VALIDATION}
    assert {key: report[key] for key in EXPECTED} == EXPECTED
    assert all(report[name] is None for name in VALIDATION)  # nothing is held out
    assert report["pretrained_model_name_or_path"].endswith("/model")
    found = losses(run)
    assert report["final_loss"] == pytest.approx(found[-1])
    assert report["mean_loss"] == pytest.approx(sum(found) / 4)
    assert report["images_per_second"] == pytest.approx(4 * report["steps_per_second"])
    assert report["images_per_second_per_device"] == pytest.approx(report["images_per_second"] / 2)
    assert report["peak_memory_bytes"] > 2**26
    assert {"python", "torch", "diffusers"} <= report["versions"].keys()


EXPECTED = {
    # the tutorials' names
    "model": "stable-diffusion",
    "resolution": 32,
    "local_rank": 0,
    "batch_size": 1,
    "precision": "no",
    "max_train_steps": 4,
    "device": "cpu",
    "skip_steps": 1,
    # and ours
    "recipe": "text_to_image",
    "plugin": "torch_ddp",
    "world_size": 2,
    "gradient_accumulation_steps": 2,
    "global_batch_size": 4,
    "num_examples": 6,
    "steps": 4,
    "seed": 7,
    "use_ema": True,
    "lora_rank": 0,
    "learning_rate": 1e-3,
    "resumed_from_step": 0,
    "trained": "unet",
    "trained_parts": ["unet"],
    "train_text_encoder": False,
    "lr_scheduler": "linear",
    "validation_prompts": PROMPTS,
    "held_out_examples": 0,
    "skipped_steps": 0,
    "bad_samples": [],
}
OTHER_KEYS = {
    "pretrained_model_name_or_path",
    "device_name",
    "attention",
    "attention_backend",
    "compile",
    "compile_seconds",
    "finished",
    "seconds",
    "seconds_of_this_start",
    "device_hours",
    "steps_per_second",
    "images_per_second",
    "images_per_second_per_device",
    "peak_memory_bytes",
    "timed_step",
    "final_loss",
    "mean_loss",
    "versions",
}


def test_time_and_device_hours_are_those_of_all_starts(train, monkeypatch):
    """The second start, of one process, after one of two."""
    seconds = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(
        Spent, "and_this_start", lambda spent, processes, at=None: taken(spent, next(seconds), processes)
    )
    train(ranks=2, max_train_steps=2, checkpointing_steps=1)
    seconds = iter([30.0, 70.0])
    output = train(max_train_steps=3, checkpointing_steps=1)
    found = json.loads((output / "report.json").read_text())
    assert (found["seconds"], found["seconds_of_this_start"]) == (270.0, 70.0)
    assert found["device_hours"] == pytest.approx((2 * 200 + 70) / 3600, abs=1e-4)
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(found["finished"])).seconds < 60


def taken(before: Spent, seconds: float, processes: int) -> Spent:
    return Spent(before.seconds + seconds, before.device_seconds + seconds * processes)


def test_the_logged_loss_is_the_mean_over_ranks_and_micro_batches(run, train):
    """That of one process with the whole batch at once."""
    alone = train(train_batch_size=4, max_train_steps=4, lr_scheduler="linear")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


def test_scalars_come_every_so_many_steps_and_at_both_ends(train):
    found = scalars(train(max_train_steps=7, logging_steps=3))
    assert sorted(found["train/loss"]) == [1, 3, 6, 7]


def test_a_resumed_run_shows_a_loss_from_its_first_step(train, capsys):
    output = train(max_train_steps=3, logging_steps=10)
    said = capsys.readouterr().out
    assert "nan" not in said
    assert f"result in {output}/checkpoint; open {output}/report.html\n" in said
    mean = json.loads((output / "report.json").read_text())["mean_loss"]
    train(max_train_steps=5, logging_steps=10)
    assert f"train    4/5  mean loss {mean:.4f}  lr" in capsys.readouterr().out


def test_the_curve_of_a_resumed_run_starts_where_its_metrics_start(train):
    """The second resume is as of a checkpoint from before there was a metrics.jsonl."""
    for last in (2, 4):
        output = train(max_train_steps=last, logging_steps=1)
    assert curve_ends(output) == (1, 4)
    (output / "run/metrics.jsonl").unlink()
    train(max_train_steps=6, logging_steps=1)
    assert curve_ends(output) == (5, 6)


def curve_ends(output: Path) -> tuple[int, int]:
    steps = page_data(output)["metrics"]["step"]
    return steps[0], steps[-1]


def page_data(output: Path):
    (text,) = re.findall(r'<script id="data"[^>]*>(.*?)</script>', (output / "report.html").read_text())
    return json.loads(text)


def test_samples_are_of_the_ema_weights(train):
    settings = {"validation_prompts": ["a cross"], "num_validation_images": 1, "validation_steps": 1}
    plain = train("plain", learning_rate=0.05, **settings)
    # decay 0: the EMA equals the weights, to rounding
    same = train("same", learning_rate=0.05, use_ema=True, ema_decay=0.0, **settings)
    slow = train("slow", learning_rate=0.05, use_ema=True, ema_decay=0.999, **settings)
    for step in (1, 2, 3):
        images = [np.asarray(Image.open(o / first_sample(step)), dtype=int) for o in (plain, same, slow)]
        assert np.abs(images[1] - images[0]).max() <= 2
    assert np.abs(images[2] - images[0]).max() > 2
    assert losses(slow) == losses(plain)  # sampling restores the trained weights


def first_sample(step: int) -> str:
    return f"samples/step-{step:06d}/prompt00-00.png"
