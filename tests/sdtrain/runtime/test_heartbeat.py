"""Heartbeats: how often, from which work, and the stacks of a process on request."""

import itertools
import os
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdjob import protocol
from sdjob.dataset.detect import find_dataset
from sdjob.protocol import Channel, Heartbeat
from sdtrain.data.sources import open_source
from sdtrain.data.training_images import verify
from sdtrain.runtime import heartbeat
from tests.sdtrain.data.test_training_images import InMemory
from tests.support.datasets import PNG


@pytest.fixture
def beats(monkeypatch, tmp_path):
    """beats(seconds): whether a sign of life comes within so long from now."""
    file = tmp_path / "alive-0"
    file.touch()
    monkeypatch.setenv("SDJOB_NOTES_DIR", str(tmp_path))
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN_BEATS", 0.02)

    def within(seconds: float, meanwhile=lambda: None) -> bool:
        os.utime(file, (0, 0))
        until = time.monotonic() + seconds
        while file.stat().st_mtime == 0 and time.monotonic() < until:
            meanwhile()
            time.sleep(0.01)
        return file.stat().st_mtime > 0

    return within


def test_a_table_that_is_converted_is_alive(beats, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), data / "train.parquet")
    info = find_dataset(data, None, captions=False, image_column="image", caption_column="text")
    assert beats(0) is False
    assert beats(20, lambda: open_source(info, tmp_path / f"converted-{time.monotonic_ns()}"))


def test_every_image_that_is_looked_at_is_a_sign_of_life(beats):
    seen = []

    class Source:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            seen.append(index)
            return InMemory(index, PNG)

    assert beats(0, lambda: None) is False
    assert beats(20, lambda: verify(Source(), "all", 0, 1))
    assert sorted(seen[:3]) == [0, 1, 2]


def computed() -> None:
    sum(range(1_000_000))


def test_a_stage_without_reports_is_alive_while_it_computes_or_reads(beats, monkeypatch, tmp_path):
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN_LOOKS", 0.2)
    monkeypatch.setattr(heartbeat, "_CPU_SECONDS", 0.005)
    large = tmp_path / "large"
    large.write_bytes(bytes(1 << 18))
    with heartbeat.working("load"):
        assert beats(20, computed)
        assert beats(20, large.read_bytes)
        assert Heartbeat.read(tmp_path, 0).stage == "load"
    assert not beats(0.5, computed)


def test_a_compilation_is_alive_while_a_compiler_computes(beats, monkeypatch):
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN_LOOKS", 0.2)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as compiler:
        try:
            with heartbeat.working("compile", children=True):
                assert beats(20)
        finally:
            compiler.kill()


def test_a_stage_that_only_waits_is_not_alive(beats, monkeypatch):
    """As where a mount does not answer any more."""
    looks = itertools.chain([(1.0, 0), (1.01, 500), (1.02, 1000)], itertools.repeat((1.03, 1500)))
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(heartbeat, "_work", lambda children: next(looks))
    with heartbeat.working("load"):
        assert not beats(0.3)


def test_heartbeats_come_at_most_once_a_second(monkeypatch, tmp_path):
    clock = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    pulse, steps = heartbeat.Pulse("step", Channel(tmp_path, tmp_path).environment()), []
    for step in range(1, 31):
        pulse(step)
        steps.append(Heartbeat.read(tmp_path, 0).step)
        clock[0] += 0.25
    assert sorted(set(steps)) == [*range(1, 31, 4)]


def test_the_last_heartbeat_of_a_stage_is_not_held_back(monkeypatch, tmp_path):
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: 100.0)
    pulse = heartbeat.Pulse("load", Channel(tmp_path, tmp_path).environment())
    for done in (1, 2, 3):
        pulse(None, done, 3)
    assert Heartbeat.read(tmp_path, 0) == Heartbeat(os.getpid(), "load", None, 3, 3)


@pytest.mark.parametrize(("rank", "said"), [("0", protocol.progress_line("load") + "\n"), ("1", "")])
def test_a_stage_is_named_in_the_log_of_rank_0_and_may_count(
    beats, monkeypatch, capsys, tmp_path, rank, said
):
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(heartbeat, "_CPU_SECONDS", -1)
    monkeypatch.setenv("RANK", rank)
    with heartbeat.working("load") as count:
        count(2, 3)
        until = time.monotonic() + 20
        while (beat := Heartbeat.read(tmp_path, int(rank))) is None or beat.done is None:
            assert time.monotonic() < until
    assert (beat.stage, beat.done, beat.total) == ("load", 2, 3)
    assert capsys.readouterr().out == said


def test_without_a_launcher_or_a_folder_nothing_is_announced_and_the_work_is_done(tmp_path):
    for environ in ({}, Channel(tmp_path / "missing", tmp_path).environment()):
        with heartbeat.announced(environ):
            heartbeat.Pulse("step", environ)(1)
    assert list(tmp_path.iterdir()) == []


def test_an_announced_process_answers_the_signal_with_its_stacks(tmp_path):
    with heartbeat.announced(Channel(tmp_path, tmp_path).environment()):
        assert Heartbeat.read(tmp_path, 0) == Heartbeat(os.getpid(), "start")
        os.kill(os.getpid(), protocol.STACKS_SIGNAL)
        assert "test_an_announced_process" in protocol.stacks_file(tmp_path, 0).read_text()
