"""Killed at random moments, many times over, and in the end as if nothing had happened."""

import contextlib
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdjob.output.layout import OutputLayout, step_folders
from sdtrain.checkpoint import start_point
from sdtrain.strategies import fsdp  # noqa: F401  (once, before the forks)
from tests.support.worker import forked, losses

SETTINGS = {
    "learning_rate": 1e-4,
    "use_ema": True,
    "ema_decay": 0.9,
    "lr_scheduler": "cosine",
    "random_flip": True,
    "train_batch_size": 2,
}
# Every step is saved, so that most moments are inside a save.
SAVING = {"checkpointing_steps": 1, "checkpoints_total_limit": 2}
START = 0.6  # about as many seconds as a start takes
STEP = 0.1  # and a step with its save
SAVE = 0.02  # and most of a save


def saving(output: Path, since: float) -> bool:
    """Whether a save has been under way since then; what an earlier one left is older."""
    for folder in output.glob("checkpoint/.checkpoint-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if folder.stat().st_mtime >= since:
                return True
    return False


def wait_for_a_save(output: Path, since: float, further: int) -> None:
    """Until a save is under way, and so many have been completed before it."""
    layout = OutputLayout(output)

    def newest() -> int:
        return max((folder.step for folder in step_folders(layout)), default=0)

    wanted = newest() + further
    while not (newest() >= wanted and saving(output, since)):
        assert time.time() < since + 60
        time.sleep(0.001)


def kill(processes, moments: random.Random) -> bool:
    """Kills the ranks as kill -9 does, one shortly after the other; False: they had ended before."""
    alive = all(process.exitcode is None for process in processes)
    for process in moments.sample(processes, len(processes)):
        process.kill()
        time.sleep(moments.choice((0, 0.01)))
    for process in processes:
        process.join()
    return alive and -signal.SIGKILL in [process.exitcode for process in processes]


@pytest.mark.parametrize(
    ("plugin", "kills"),
    [
        ("torch_ddp", 4),
        pytest.param("torch_ddp", 50, marks=pytest.mark.long),
        pytest.param("fsdp", 12, marks=pytest.mark.long),
    ],
)
def test_two_processes_killed_at_random_moments(train, inputs, tmp_path, capfd, plugin, kills):
    settings = {**SETTINGS, "plugin": plugin, "max_train_steps": 3 * kills}
    undisturbed = train("undisturbed", ranks=2, **settings, checkpointing_steps=10**6)
    output = tmp_path / "killed"
    layout = OutputLayout(output)
    moments = random.Random(1)
    inside, at = 0, []
    capfd.readouterr()
    for number in range(kills):
        begun = time.time()
        with forked(2, **inputs, output_dir=output, **settings, **SAVING) as processes:
            if number % 4 == 3:
                time.sleep(moments.uniform(0, START))
            else:
                wait_for_a_save(output, begun, further=moments.randrange(3))
                time.sleep(moments.uniform(0, STEP if number % 4 == 2 else SAVE))
            assert kill(processes, moments), "the run ended before it was killed: give it more steps"
        inside += saving(output, begun)
        said = capfd.readouterr().out
        assert at == [] or "starting from the beginning" not in said
        newest = start_point.newest(layout, "auto")
        if newest:
            assert newest.step >= max(at, default=0), "work was lost"
            at.append(newest.step)
        assert "is incomplete" not in capfd.readouterr().out, (
            "what a killed save left was taken for a checkpoint"
        )
    assert inside >= kills // 4, f"of {kills} kills only {inside} came inside a save"
    assert train("killed", ranks=2, **settings, **SAVING) == output
    assert f"resuming from {layout.step_folder(at[-1])}" in capfd.readouterr().out
    print(f"{kills} kills, {inside} inside a save, at steps {at}")
    assert losses(output) == losses(undisturbed)
    weights, wanted = (
        load_file(folder / "checkpoint/unet/diffusion_pytorch_model.safetensors")
        for folder in (output, undisturbed)
    )
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
