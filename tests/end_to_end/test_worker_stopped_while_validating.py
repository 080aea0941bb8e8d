"""Asked to stop while it draws or measures: the steps before are saved, and the next start goes on."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sdtrain.model import generation
from sdtrain.validation import held_out_loss
from tests.support.worker import losses, scalars

EVERY_TWO = {"max_train_steps": 4, "validation_steps": 2, "learning_rate": 1e-3}
IMAGES = {**EVERY_TWO, "validation_prompts": ["a", "b", "c", "d"], "sample_batch_size": 1}


@pytest.fixture
def in_call(monkeypatch):
    """in_call(module, function, n, rank): a SIGTERM reaches the rank in the n-th call of the function."""

    def arrange(module: Any, function: str, call: int, rank: int = 0) -> None:
        original, calls = getattr(module, function), []

        def signalled(*arguments):
            calls.append(1)
            if len(calls) == call and int(os.environ.get("RANK", 0)) == rank:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        monkeypatch.setattr(module, function, signalled)

    return arrange


def step_folders(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoint").glob("checkpoint-*"))


def test_a_stop_while_samples_are_drawn_saves_the_steps_before(train, in_call, monkeypatch):
    undisturbed = train("undisturbed", **IMAGES)
    in_call(generation, "generate", call=2)  # after the samples of the untrained model
    output = train(code=75, **IMAGES)
    assert step_folders(output) == ["checkpoint-000002"]
    assert len(list((output / "samples/step-000002").glob("*.png"))) == 1
    monkeypatch.undo()
    train(**IMAGES)
    assert losses(output) == losses(undisturbed)
    for name in ("before_after.png", *(f"step-000002/prompt{p:02}-00.png" for p in range(4))):
        assert (output / "samples" / name).read_bytes() == (undisturbed / "samples" / name).read_bytes()


@pytest.mark.parametrize("at", ["drawing", "measuring"])
def test_a_stop_of_one_rank_ends_the_validation_of_all(train, in_call, of_class, at):
    if at == "drawing":
        in_call(generation, "generate", call=2, rank=1)
        output = train(code=75, ranks=2, **IMAGES)
    else:
        in_call(held_out_loss, "_noised", call=3, rank=1)  # in the first of two rounds
        output = train(
            code=75, ranks=2, plugin="fsdp", recipe="dreambooth", validation_data_dir=of_class, **EVERY_TWO
        )
        assert sorted(scalars(output)["validation/loss"]) == [0]
    assert step_folders(output) == ["checkpoint-000002"]


def test_a_stop_before_training_begins_afresh_with_all_samples(train, in_call, monkeypatch):
    in_call(generation, "generate", call=1)
    output = train(code=75, **IMAGES)
    assert step_folders(output) == []
    monkeypatch.undo()
    train(**IMAGES)
    assert (output / "samples/before_after.png").exists()


def test_a_stop_after_the_last_step_leaves_the_result_and_is_completed_by_the_next_start(
    train, in_call, monkeypatch
):
    in_call(generation, "generate", call=3)
    output = train(code=75, **IMAGES)
    assert (output / "checkpoint/model_index.json").exists()
    assert not (output / "report.json").exists()
    monkeypatch.undo()
    train(**IMAGES)
    assert (output / "samples/before_after.png").exists()
    assert (output / "report.json").exists()
