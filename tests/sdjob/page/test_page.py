"""Tests of page and data: what the page holds, in which files, and that texts stay texts."""

import json
import re

import pytest

from sdjob import reading
from sdjob.output.layout import OutputLayout
from sdjob.page import data, page
from sdjob.page.curves import Curves
from sdjob.page.data import Alive, collect

HOSTILE = "</script><!--<img src=x onerror=alert(1)>\u2028&"


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "run").mkdir()
    return OutputLayout(tmp_path)


def collected(layout, **state):
    return collect(layout, Curves(layout.metrics), **state)


def sample(layout, step, prompts, images):
    folder = layout.samples / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    for name in images:
        (folder / name).touch()


def test_an_empty_folder_is_a_run_that_was_stopped(layout):
    found = collected(layout)
    assert (found["state"], found["samples"], found["events"], found["failure"]) == ("stopped", [], [], None)


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b"\xff", b'{"settings": 3, "mounts": [], "warnings": {}}']
)
def test_damaged_files_count_as_empty(layout, content):
    for path in (
        layout.run / "plan.json",
        layout.report,
        layout.failure,
        layout.events,
        layout.input_prompts,
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    page.write(layout, collected(layout, alive=Alive("load", 1.0)))
    assert collected(layout, alive=Alive("load", 1.0))["state"] == "running"


def test_numbers_that_are_none_are_not_shown(layout):
    layout.report.write_text('{"steps": NaN, "images_per_second": 1e400, "final_loss": [-Infinity]}')
    layout.events.write_text('{"kind": "skip", "step": 1e400, "time": 1}\n{"kind": "skip", "time": 1e400}\n')
    page.write(layout, collected(layout))
    assert not re.search("NaN|Infinity", layout.page_data.read_text())


@pytest.mark.parametrize(
    "content",
    ['{"seconds": 5}', '{"seconds": "x", "device_hours": {}}', '{"settings": {"x": {"value": {}}}}'],
)
def test_values_of_other_types_are_left_out(layout, content):
    (layout.run / "plan.json").write_text(content)
    layout.report.write_text(content)
    layout.starts.write_text('[{"since": "x", "processes": 1}]')
    page.write(layout, collected(layout))


def test_of_values_in_values_the_outer_ones_are_shown(layout):
    """JSON is read to a depth that may be too much for who writes it."""
    for name in ("report.json", "run/plan.json", "failure.json"):
        (layout.root / name).write_text('{"code": 1, "problems": ' + "[" * 900 + "]" * 900 + "}")
    page.write(layout, collected(layout))
    assert "[" * 20 not in layout.page_data.read_text()


def test_samples_of_others_take_bounded_memory(layout, monkeypatch):
    for step in range(5):
        folder = layout.samples / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "prompts.json").write_text(json.dumps(["x" * 400]))
    for number in range(500):
        (layout.samples / f"x{number}").touch()
    monkeypatch.setattr(reading, "MESSAGE", 1000)
    assert [each["step"] for each in data.samples(layout)] == [3, 4]


def test_states(layout):
    layout.report.write_text(json.dumps({"steps": 3}))
    assert collected(layout)["state"] == "finished"
    assert collected(layout, alive=Alive("train", 1.0))["state"] == "running", "of another start"
    layout.failure.write_text(json.dumps({"class": "out of memory", "code": 71, "traceback": "secret"}))
    failed = collected(layout)
    assert (failed["state"], failed["failure"]["class"]) == ("failed", "out of memory")
    assert "traceback" not in failed["failure"]
    layout.report.unlink()
    layout.failure.unlink()
    assert collected(layout, ended="killed")["state"] == "killed"


def test_samples_of_each_step_by_prompt(layout):
    sample(layout, 20, ["a", "b"], ["prompt00-00.png", "prompt00-01.png", "prompt01-00.png", "other.png"])
    sample(layout, 0, ["a", "b"], ["prompt01-00.png"])
    (layout.samples / "step-x").mkdir()
    found = collected(layout)["samples"]
    assert [(each["step"], each["folder"]) for each in found] == [
        (0, "samples/step-000000"),
        (20, "samples/step-000020"),
    ]
    assert found[0]["images"] == [[], ["prompt01-00.png"]]
    assert found[1]["images"] == [["prompt00-00.png", "prompt00-01.png"], ["prompt01-00.png"]]


def test_events_are_in_the_order_of_time_and_bounded(layout, monkeypatch):
    layout.metrics.write_text('{"step": 0, "time": 5.0}\n{"step": 1, "time": 6.0, "loss": 1.0}\n')
    events = [{"kind": "checkpoint", "step": 1, "time": 7.0, "text": ""}, {"kind": "x"}]
    layout.events.write_text("".join(json.dumps(each) + "\n" for each in events))
    assert [(each["kind"], each["time"]) for each in collected(layout)["events"]] == [
        ("start", 5.0),
        ("checkpoint", 7.0),
    ]
    monkeypatch.setattr(data, "EVENTS", 4)
    many = [{"kind": "skip", "step": step, "time": 10.0 + step} for step in range(20)]
    layout.events.write_text("".join(json.dumps(each) + "\n" for each in many))
    assert [each["step"] for each in collected(layout)["events"]] == [0, 17, 18, 19]


def test_settings_come_with_their_sources(layout):
    plan = {
        "settings": {"lr": {"value": 1e-4, "source": "environment"}},
        "warnings": ["w"],
        "arithmetic": ["1 × 2"],
    }
    (layout.run / "plan.json").write_text(json.dumps(plan))
    found = collected(layout)
    assert found["settings"] == [("lr", 1e-4, "environment")]
    assert (found["warnings"], found["about"]) == (["w"], ["1 × 2"])


def test_texts_cannot_leave_their_script(layout):
    plan = {"settings": {"instance_prompt": {"value": HOSTILE, "source": HOSTILE}}, "warnings": [HOSTILE]}
    (layout.run / "plan.json").write_text(json.dumps(plan))
    page.write(layout, collected(layout))
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', layout.page.read_text())
    assert json.loads(text)["warnings"] == [HOSTILE]
    script = layout.page_data.read_text()
    assert script.isascii() and not re.search("[<>&]", script)
    assert json.loads(script.removeprefix("sdReport(").removesuffix(");\n"))["warnings"] == [HOSTILE]


def test_the_page_asks_nothing_of_other_hosts(layout):
    page.write(layout, collected(layout))
    assert not re.search(r"""(src|href|url\()\s*=?\s*["'(]?https?:""", layout.page.read_text())


def test_a_link_in_place_of_the_page_is_replaced_not_followed(layout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
    elsewhere.write_text("kept")
    layout.page.symlink_to(elsewhere)
    page.write(layout, collected(layout))
    assert elsewhere.read_text() == "kept" and not layout.page.is_symlink()


def test_how_to_load_the_result(layout):
    report = {
        "model": "stable-diffusion",
        "pretrained_model_name_or_path": "/mnt/model/sd",
        "validation_prompts": ["a 'cat'"],
    }
    found = {each["title"]: each["text"] for each in collected(layout, report=report)["usage"]}
    assert found["Generate images"].startswith(f"bash train.sh generate {layout.checkpoint} --prompts ")
    assert f'DiffusionPipeline.from_pretrained("{layout.checkpoint}")' in found["Python"]


def test_tiles_show_what_was_logged_last_until_there_is_a_report(layout):
    """Each validation metric has one, without its name in any other place."""
    logged = {
        "learning_rate": 1e-4,
        "images_per_second": 12.5,
        "peak_memory_gib": 0.5,
        "validation_clip_score": 0.25,
    }
    rows = ({"step": 1, "time": 5.0, "loss": 1.0, **logged}, {"step": 2, "time": 6.0, "loss": 0.5})
    layout.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    running = [
        ("validation clip score", 0.25, "number"),
        ("images/s", 12.5, "number"),
        ("learning rate", 1e-4, "number"),
        ("peak memory", 2.0**29, "bytes"),
        ("total run time", 0.0, "duration"),
        ("device hours", 0.0, "number"),
    ]
    assert collected(layout, alive=Alive("train", 1.0))["tiles"] == running
    report = {
        "validation_clip_score": 0.0,
        "images_per_second": 13.0,
        "peak_memory_bytes": 3,
        "learning_rate": 1.0,
    }
    report |= {"seconds": 9.5, "device_hours": "damaged"}
    assert collected(layout, report=report)["tiles"] == [
        ("validation clip score", 0.0, "number"),
        ("images/s", 13.0, "number"),
        ("learning rate", 1e-4, "number"),
        ("peak memory", 3, "bytes"),
        ("total run time", 9.5, "duration"),
    ]
