"""Checkpoints written in the background: complete, in order, and every failure is reported."""

import errno
import json
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from sdjob.problems import JobError
from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import background, start_point, state_io
from sdtrain.checkpoint.background import Saver
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.runtime import host_memory
from tests.support.worker import context_of, snapshot

PATIENCE = 30


@pytest.fixture
def saver(layout):
    with Saver(context_of(layout)) as saver:
        yield saver


def state(step: int) -> TrainState:
    return TrainState(step=step, samples_seen=step, loss=0.5, loss_sum=0.5, fingerprint={})


def write(folder):
    (folder / "model.safetensors").write_bytes(b"weights")


def full(folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def steps(layout) -> list[int]:
    return [int(path.name[-6:]) for path in sorted(layout.checkpoint.glob("checkpoint-*"))]


def test_the_run_goes_on_while_it_is_written_and_the_next_save_waits(layout, saver):
    go_on = threading.Event()

    def slowly(folder):
        assert go_on.wait(PATIENCE)
        write(folder)

    saver.write(state(1), slowly, background=True)
    assert steps(layout) == []
    go_on.set()
    saver.write(state(2), write, background=True)
    assert 1 in steps(layout)
    saver.write(state(3), write)
    assert steps(layout) == [1, 2, 3]
    assert start_point.newest(layout, "auto").step == 3


def test_a_started_checkpoint_is_completed_whatever_ends_the_run(layout):
    go_on = threading.Event()

    def slowly(folder):
        assert go_on.wait(PATIENCE)
        write(folder)

    with pytest.raises(ZeroDivisionError), Saver(context_of(layout)) as saver:
        saver.write(state(1), slowly, background=True)
        threading.Timer(0.05, go_on.set).start()
        raise ZeroDivisionError
    assert start_point.newest(layout, "auto").step == 1


def test_a_full_disk_is_reported_at_once_and_raised_by_the_next_save(layout, saver):
    saver.write(state(1), write)
    assert not saver.failed
    saver.write(state(2), full, background=True)
    saver._thread.submit(lambda: None).result()
    assert saver.failed
    with pytest.raises(JobError) as error:
        saver.write(state(3), write, background=True)
    assert error.value.code == 73
    assert "No space left" in str(error.value)
    assert [path.name for path in layout.checkpoint.iterdir()] == ["checkpoint-000001"]


def test_another_failure_is_not_taken_for_a_full_disk(saver):
    def wrong(folder):
        raise ValueError("shapes differ")

    saver.write(state(1), wrong, background=True)
    with pytest.raises(ValueError, match="shapes differ"):
        saver.write(state(2), write)


WRITTEN = {
    ("none", 1): (state_io, "save_whole", ("model.safetensors", "ema.safetensors")),
    ("fsdp", 1): (state_io, "save", ("shards/__0_0.distcp", "numbers.json")),
}


@pytest.mark.parametrize(("plugin", "ranks"), WRITTEN)
def test_it_holds_the_weights_of_its_step(train, monkeypatch, capfd, plugin, ranks):
    """However late it is written."""
    module, function, files = WRITTEN[plugin, ranks]
    settings = {"plugin": plugin, "ranks": ranks, "use_ema": True, "ema_decay": 0.5}
    settings |= {"checkpointing_steps": 2, "max_train_steps": 3}
    at_once = train("at_once", background_save=False, **settings)
    written = getattr(module, function)

    def late(*args, **given):
        threading.Event().wait(0.3)  # some steps
        print(threading.current_thread().name, flush=True)
        written(*args, **given)

    monkeypatch.setattr(module, function, late)
    capfd.readouterr()
    background = train("background", **settings)
    assert capfd.readouterr().out.count("checkpoint_0") == ranks
    for step in (2, 3):
        found, wanted = (
            snapshot(output / f"checkpoint/checkpoint-{step:06d}") for output in (background, at_once)
        )
        for name in files:
            assert found[name] == wanted[name], (step, name)
        states = [
            json.loads((output / f"checkpoint/checkpoint-{step:06d}/state.json").read_text())
            for output in (background, at_once)
        ]
        for state in states:
            del state["spent"]  # time
        assert states[0] == states[1]


def test_a_disk_that_gets_full_in_the_background_ends_both_ranks_soon(train, monkeypatch):
    written = state_io.save_whole

    def fail_at_the_second(folder, **state):
        full(folder) if "000002" in folder.name else written(folder, **state)

    monkeypatch.setattr(state_io, "save_whole", fail_at_the_second)
    output = train(ranks=2, code=73, checkpointing_steps=1, max_train_steps=100)
    assert [path.name for path in (output / "checkpoint").iterdir()] == ["checkpoint-000001"]


def test_a_shard_that_finds_the_disk_full_ends_both_ranks_too(train, monkeypatch):
    class Full(state_io.FileSystemWriter):
        def write_data(self, *args):
            if torch.distributed.get_rank() == 1 and "000002" in str(self.path):
                full(self.path)
            return super().write_data(*args)

    monkeypatch.setattr(state_io, "FileSystemWriter", Full)
    output = train(plugin="fsdp", ranks=2, code=73, checkpointing_steps=1, max_train_steps=100)
    assert [path.name for path in (output / "checkpoint").iterdir()] == ["checkpoint-000001"]


@pytest.mark.parametrize(
    ("plugin", "rank", "enough"),
    [("torch_ddp", 0, 400), ("torch_ddp", 2, 0), ("fsdp", 0, 800), ("fsdp", 2, 400)],
)
def test_the_copies_of_all_ranks_of_a_host_need_its_memory(monkeypatch, plugin, rank, enough):
    """Ranks 0 and 1 on one host, 2 on another; each holds 25 weights and their optimizer state."""
    spec = RunSpec(pretrained_model_name_or_path="-", output_dir="-", plugin=plugin)
    strategy = SimpleNamespace(masters=lambda: {"weight": torch.zeros(25)})

    def has_room(available, *, again=False):
        monkeypatch.setattr(host_memory, "available", lambda: available)
        sharded = 400 if plugin == "fsdp" else 0
        asked = [(0, 100 if again and not sharded else 400), (0, sharded), (2, sharded)]
        mine = []
        world = SimpleNamespace(
            rank=rank,
            local_rank=0,
            is_main=rank == 0,
            gather=lambda value: mine.append(value) or asked,
            any=lambda flag: flag,
        )
        found = background._has_room_for_copy(spec, world, strategy, None, again=again)
        assert mine == [asked[rank]]
        return found

    assert has_room(enough)
    assert not has_room(enough - 1)
    assert has_room(100 if plugin == "torch_ddp" and not rank else enough, again=True)


def test_without_memory_for_a_copy_it_is_written_at_once(train, monkeypatch, capsys):
    monkeypatch.setattr(host_memory, "available", lambda: 100)
    no_thread = SimpleNamespace(shutdown=lambda: None)
    monkeypatch.setattr(background, "ThreadPoolExecutor", lambda *_: no_thread)
    train(checkpointing_steps=1, max_train_steps=2)
    said = capsys.readouterr().out
    assert "not enough host memory for a copy" in said and "checkpoint-000002" in said
