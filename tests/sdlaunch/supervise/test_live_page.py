"""Tests of live_page: there from the start, follows the heartbeat, and leaves the worker's last page alone."""

import json
import time

import pytest

from sdjob.output.layout import OutputLayout
from sdjob.protocol import Channel, Heartbeat
from sdlaunch.supervise import live_page
from sdlaunch.supervise.live_page import LivePage


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "run").mkdir()
    return OutputLayout(tmp_path)


@pytest.fixture
def channel(layout):
    channel = Channel.of_node(layout.run, 0)
    channel.clear()
    return channel


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    for name in ("_LOOK", "_DATA", "_PAGE", "_LOAD"):
        monkeypatch.setattr(live_page, name, 0.01)


def shown(layout):
    """The data of the newest write; None before the first."""
    try:
        return json.loads(layout.page_data.read_text().removeprefix("sdReport(").removesuffix(");\n"))
    except FileNotFoundError:
        return None


def wait_for(condition):
    limit = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < limit
        time.sleep(0.01)
    return found


def test_follows_a_run_from_its_start_to_its_end(layout, channel):
    with LivePage(layout, channel) as page:
        wait_for(layout.page.exists)
        assert (shown(layout)["state"], shown(layout)["stage"]["stage"]) == ("running", "start")
        Heartbeat(1, "cache", None, 3, 6).write(channel.notes, 0)
        found = wait_for(lambda: (data := shown(layout)) and data["stage"]["stage"] == "cache" and data)
        assert (found["stage"]["done"], found["stage"]["total"], found["total"]) == (3, 6, None)
        Heartbeat(1, "train", 7, 7, 90).write(channel.notes, 0)
        found = wait_for(lambda: (data := shown(layout)) and data["stage"]["stage"] == "train" and data)
        assert (found["stage"]["step"], found["total"]) == (7, 90)
        page.end("stopped")
    assert (shown(layout)["state"], shown(layout)["total"]) == ("stopped", 90)
    assert '"state":"stopped"' in layout.page.read_text()


def test_the_last_page_of_the_worker_stays(layout, channel):
    with LivePage(layout, channel):
        wait_for(layout.page.exists)
        layout.report.write_text("{}")
        time.sleep(0.2)
        layout.page.write_text("the worker's")
        time.sleep(0.2)
        assert layout.page.read_text() == "the worker's"


def test_the_page_of_an_earlier_run_stays_until_training_goes_on(layout, channel):
    layout.report.write_text("{}")
    layout.page.write_text("of an earlier run")
    with LivePage(layout, channel):
        Heartbeat(1, "load").write(channel.notes, 0)
        time.sleep(0.2)
        assert layout.page.read_text() == "of an earlier run"
        Heartbeat(1, "train", 401, 401, 500).write(channel.notes, 0)
        wait_for(lambda: layout.page.read_text() != "of an earlier run")
    assert shown(layout)["state"] == "running"


def test_a_folder_that_fails_ends_nothing(layout, channel):
    layout.page.mkdir()
    with LivePage(layout, channel) as page:
        time.sleep(0.1)
        page.end("stopped")
    assert layout.page.is_dir()


def test_the_page_of_a_refused_job(layout):
    problem = {"subject": "lr", "found": "abc", "remedy": "Give a number."}
    failure = {"class": "refused", "code": 64, "problems": [problem]}
    layout.failure.write_text(json.dumps(failure))
    live_page.refused(layout, {"settings": {"lr": {"value": "abc", "source": "environment"}}})
    found = shown(layout)
    assert (found["state"], found["failure"]["problems"], found["settings"]) == (
        "failed",
        [problem],
        [["lr", "abc", "environment"]],
    )
