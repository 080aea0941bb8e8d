"""Failures end with their exit code and a remedy, and leave nothing bad behind."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdjob.output.layout import is_exported
from sdtrain import loop
from sdtrain.checkpoint import checkpoint
from sdtrain.export import export
from sdtrain.objective import diffusion
from sdtrain.reporting import report
from tests.support.worker import environment, flags, losses, scalars, snapshot


def finite(folder) -> bool:
    files = list(folder.rglob("*.safetensors"))
    return all(weight.isfinite().all() for file in files for weight in load_file(file).values())


@pytest.fixture
def copied(captioned, tmp_path):
    """A copy of the captioned images, to be spoilt."""
    return shutil.copytree(captioned, tmp_path / "data")


def spoiled_loss(monkeypatch, step, spoil):
    """Has the loss of one step spoilt."""
    count, original = iter(range(1, 1000)), diffusion.loss_of
    monkeypatch.setattr(
        diffusion,
        "loss_of",
        lambda *given: spoil(original(*given)) if next(count) == step else original(*given),
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("logging_steps", [1, 100])
def test_a_loss_that_is_not_finite_is_70_and_never_saved(train, monkeypatch, capsys, bad, logging_steps):
    spoiled_loss(monkeypatch, 3, lambda loss: loss * bad)
    output = train(code=70, max_train_steps=6, checkpointing_steps=2, logging_steps=logging_steps)
    assert [path.name for path in (output / "checkpoint").iterdir()] == ["checkpoint-000002"]
    assert finite(output)
    error = capsys.readouterr().err
    assert error.startswith("loss: is ")
    assert "Traceback" not in error


def test_the_images_of_a_loss_that_is_not_finite_are_named(train, monkeypatch, tmp_path):
    """In the note, which becomes failure.json: of the first such step, not of the last."""
    monkeypatch.setenv("SDJOB_NOTES_DIR", str(tmp_path / "notes"))
    count = iter(range(1, 1000))
    original = diffusion.loss_of
    monkeypatch.setattr(
        diffusion, "loss_of", lambda *given: original(*given) * (float("nan") if next(count) >= 3 else 1)
    )
    sources = []
    observe = loop.Anomalies.observe

    def recorded(self, step, batch, loss):
        sources.append(batch)
        observe(self, step, batch, loss)

    monkeypatch.setattr(loop.Anomalies, "observe", recorded)
    train(code=70, max_train_steps=8, logging_steps=8, train_batch_size=2)
    names = sources[2].names
    wanted = f"; it was nan at step 3, with {names[0]}, {names[1]}"
    assert len(names) == 2
    (problem,) = json.loads((tmp_path / "notes/rank-0.json").read_text())["problems"]
    assert problem["subject"] == "loss" and wanted in problem["found"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_leaves_no_trace_in_the_weights(train, monkeypatch, capsys, accumulation):
    """A run whose last step is not applied has the weights of one that is a step shorter."""
    settings = {"gradient_accumulation_steps": accumulation, "use_ema": True, "ema_decay": 0.5}
    shorter = train("shorter", max_train_steps=2, **settings)
    spoiled_loss(monkeypatch, 2 * accumulation + 1, lambda loss: loss * float("inf"))
    output = train(max_train_steps=3, on_nan="skip", **settings)
    file = "checkpoint/unet/diffusion_pytorch_model.safetensors"
    weights, wanted = load_file(output / file), load_file(shorter / file)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    found = json.loads((output / "report.json").read_text())
    assert found["skipped_steps"] == 1
    assert found["mean_loss"] == pytest.approx(sum(losses(shorter)) / 2, rel=1e-6)
    assert "step 3 is not applied: the loss was inf at step 3, with " in capsys.readouterr().out


def test_a_run_without_a_step_that_was_applied_reports_no_loss(train, monkeypatch):
    spoiled_loss(monkeypatch, 1, lambda loss: loss * float("nan"))
    output = train(max_train_steps=1, on_nan="skip")
    values = json.loads((output / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (values["skipped_steps"], values["final_loss"], values["mean_loss"]) == (1, None, None)
    assert "mean loss" not in (output / "report.html").read_text()


@pytest.mark.parametrize("plugin", ["torch_ddp", "fsdp"])
def test_a_step_is_skipped_on_every_rank(train, monkeypatch, plugin):
    """The loss of one rank only is non-finite; both end with the same weights, or they would not agree later."""
    original = diffusion.loss_of
    count = iter(range(1, 1000))

    def spoiled(*given):
        bad = next(count) == 2 and os.environ["RANK"] == "1"
        return original(*given) * (float("nan") if bad else 1)

    monkeypatch.setattr(diffusion, "loss_of", spoiled)
    output = train(ranks=2, max_train_steps=3, on_nan="skip", plugin=plugin)
    assert finite(output)
    assert sorted(scalars(output)["train/loss"]) == [1, 3]


def test_skipped_steps_are_counted_over_a_resume(train, monkeypatch):
    for steps in (2, 4):
        monkeypatch.undo()
        spoiled_loss(monkeypatch, 2, lambda loss: loss * float("nan"))
        output = train(max_train_steps=steps, on_nan="skip")
    assert json.loads((output / "report.json").read_text())["skipped_steps"] == 2


def test_too_many_skipped_steps_are_70(train, monkeypatch, capsys):
    original = diffusion.loss_of
    monkeypatch.setattr(diffusion, "loss_of", lambda *given: original(*given) * float("nan"))
    output = train(code=70, max_train_steps=9, on_nan="skip", max_nan_steps=3)
    error = capsys.readouterr().err
    assert (
        "4 steps had a non-finite loss (max_nan_steps=3); the last was nan at step 4" in error
        and "Traceback" not in error
    )
    assert not list((output / "checkpoint").glob("checkpoint-*"))


class _BadGradient(torch.autograd.Function):
    """A finite value with a gradient that is not."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("step", [2, 3])
def test_weights_that_are_not_finite_are_never_saved(train, monkeypatch, capsys, step):
    """The loss of the very step is still finite: only the gradient overflows, in a step that is saved."""
    spoiled_loss(monkeypatch, step, _BadGradient.apply)
    output = train(code=70, max_train_steps=3, checkpointing_steps=2)
    assert finite(output)
    assert not is_exported(output / "checkpoint", lora=False)
    assert "Traceback" not in capsys.readouterr().err


def test_a_far_too_large_learning_rate_leaves_nothing_that_is_not_finite(train, capsys):
    output = train(code=70, learning_rate=1.0, max_grad_norm=0, max_train_steps=60, adam_weight_decay=1e36)
    assert finite(output)
    assert "Lower lr" in capsys.readouterr().err


def test_a_corrupt_image_is_named_before_training(train, copied, capsys):
    (copied / "4.png").write_bytes((copied / "4.png").read_bytes()[:100])
    output = train(code=66, train_data_dir=copied)
    said = capsys.readouterr()
    assert str(copied / "4.png") in said.err
    assert "step" not in said.out
    assert not (output / "checkpoint/checkpoint-000001").exists()


def test_a_fault_before_the_first_step_leaves_an_earlier_result_where_it_is(train, copied):
    output = train(train_data_dir=copied)
    before = snapshot(output / "checkpoint")
    (copied / "4.png").write_bytes(b"broken")
    train(code=66, train_data_dir=copied, resume="never")
    assert snapshot(output / "checkpoint") == before


def test_every_problem_of_model_and_data_at_once(train, tmp_path, capsys):
    train(code=66, pretrained_model_name_or_path=tmp_path / "no_model", train_data_dir=tmp_path / "no_data")
    error = capsys.readouterr().err
    assert "no_model" in error and "no_data" in error and "Traceback" not in error


BAD_SETTINGS = {
    "fp16 on a CPU": ({"mixed_precision": "fp16"}, 64, "mixed_precision"),
    "fp16 plugin on a CPU": ({"plugin": "torch_ddp_fp16"}, 64, "mixed_precision"),
    "no data": ({"train_data_dir": None}, 64, "train_data_dir"),
    "prior of captions": ({"with_prior_preservation": True}, 64, "with_prior_preservation"),
    "no class prompt": ({"recipe": "dreambooth", "with_prior_preservation": True}, 64, "class_prompt"),
    "endless warm-up": ({"lr_scheduler": "linear", "lr_warmup_steps": 3}, 64, "lr_warmup_steps"),
    "unknown LoRA target": ({"lora_rank": 2, "lora_target_modules": "to_x"}, 64, "lora_target_modules"),
    "unknown device": ({"device": "abacus"}, 64, "device"),
    "absent device": ({"device": "npu"}, 69, "device"),
    "unavailable plugin": ({"plugin": "gemini"}, 69, "plugin"),
    "xformers on a CPU": ({"attention": "xformers"}, 64, "attention"),
    "too low for this schedule": (
        {"lr_scheduler": "polynomial", "learning_rate": 1e-8},
        64,
        "lr_scheduler",
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting(case, train, capsys):
    settings, code, subject = BAD_SETTINGS[case]
    output = train(code=code, **settings)
    error = capsys.readouterr().err
    assert error.startswith(f"{subject}: ")
    assert "→" in error and "Traceback" not in error
    assert not output.exists()


BAD_FLAGS = {
    "unknown": ["--learning_rat=1"],
    "abbreviated": ["--learning=1"],
    "not a number": ["--learning_rate=fast"],
    "not finite": ["--learning_rate=nan"],
    "no steps": ["--max_train_steps=0"],
    "no resolution": ["--resolution=33"],
    "no choice": ["--lr_scheduler=sine"],
    "no switch": ["--use_ema=perhaps"],
}


def test_bad_flags_are_refused_at_once():
    """In one process that never imports torch; the wrong flag is named."""
    program = (
        "import json, sys; from sdtrain.__main__ import main; "
        "codes = [main(argv) for argv in json.load(sys.stdin)]; "
        "print(json.dumps([codes, 'torch' in sys.modules]))"
    )
    cases = [flags(pretrained_model_name_or_path="m", output_dir="o") + bad for bad in BAD_FLAGS.values()]
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(cases),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[64] * len(cases), False]
    names = ("learning_rat=1", "learning=1", "lr: found 'fast'", "lr: found", "num_train_step", "resolution")
    for name in (*names, "lr_scheduler", "use_ema"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_flags_are_all_named(capsys):
    from sdtrain.__main__ import main

    assert main([]) == 64
    error = capsys.readouterr().err
    assert "pretrained_model_name_or_path" in error and "output_dir" in error


def test_an_output_folder_that_is_a_file_is_73(train, tmp_path, capsys):
    (tmp_path / "output").write_text("mine")
    train(code=73)
    assert (tmp_path / "output").read_text() == "mine"
    error = capsys.readouterr().err
    assert "→" in error and "Traceback" not in error


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PRIOR = {
    "recipe": "dreambooth",
    "with_prior_preservation": True,
    "class_prompt": "a cross",
    "num_class_images": 1,
}
WRITERS = {
    "optimizer": (torch, "save", {}),
    "result": (export, "sync_tree", {}),
    "report": (report, "write", {}),
    "class images": (Image.Image, "save", PRIOR),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_73_wherever_it_happens(train, monkeypatch, capsys, writer):
    owner, name, settings = WRITERS[writer]
    monkeypatch.setattr(owner, name, full)
    train(code=73, **settings)
    error = capsys.readouterr().err
    assert "OUTPUT_DIR" in error and "Traceback" not in error


@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_under_one_rank_ends_both(train, monkeypatch, step):
    """Only the first rank writes; the other one must hear of it, whichever call has failed."""
    if step == 1:
        monkeypatch.setattr(checkpoint, "_delete_leftovers", full)
    else:
        monkeypatch.setattr(torch, "save", full)
    output = train(ranks=2, code=73)
    assert not list((output / "checkpoint").glob("checkpoint-*"))


def test_a_corrupt_image_that_is_met_late_is_named(train, copied, capsys):
    (copied / "4.png").write_bytes(b"broken")
    settings = {"verify_images": "none", "dataloader_num_workers": 1, "max_train_steps": 6}
    train(code=66, train_data_dir=copied, **settings)
    error = capsys.readouterr().err
    assert str(copied / "4.png") in error and "Traceback" not in error


def spoil(folder, *numbers):
    for number in numbers:
        (folder / f"{number}.png").write_bytes(b"broken")


@pytest.mark.parametrize(("ranks", "verify"), [(1, "none"), (2, "all")])
def test_a_bad_image_is_skipped_and_reported(train, copied, capfd, ranks, verify):
    """The next image replaces it: the same losses as of a dataset with a copy of that image."""
    twin = shutil.copytree(copied, copied.with_name("twin"))
    rows = [json.loads(line) for line in (twin / "metadata.jsonl").read_text().splitlines()]
    shutil.copy(twin / "5.png", twin / "4.png")
    rows[4]["text"] = rows[5]["text"]
    (twin / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spoil(copied, 4)
    settings = {"max_train_steps": 6, "dataloader_num_workers": 1, "ranks": ranks}
    wanted = train("twin_output", train_data_dir=twin, **settings)
    output = train(train_data_dir=copied, bad_samples="skip", verify_images=verify, **settings)
    assert losses(output) == losses(wanted)
    assert json.loads((output / "report.json").read_text())["bad_samples"] == [str(copied / "4.png")]
    assert f": {copied / '4.png'}: is not an image" in capfd.readouterr().out


def test_a_resumed_run_skips_the_same_images_and_reports_all(train, copied, at_step):
    spoil(copied, 2, 3)
    settings = {"train_data_dir": copied, "bad_samples": "skip", "verify_images": "none"}
    undisturbed = train("undisturbed", max_train_steps=12, **settings)
    train(max_train_steps=7, **settings)
    output = train(max_train_steps=12, **settings)
    assert losses(output) == losses(undisturbed)
    reports = [json.loads((o / "report.json").read_text())["bad_samples"] for o in (output, undisturbed)]
    assert reports == [[str(copied / "2.png"), str(copied / "3.png")]] * 2


@pytest.mark.parametrize("verify", ["none", "all"])
def test_too_many_bad_images_are_66_and_named(train, copied, capsys, verify):
    spoil(copied, 0, 2, 4)
    settings = {"bad_samples": "skip", "max_bad_samples": 2, "verify_images": verify}
    train(code=66, train_data_dir=copied, max_train_steps=12, **settings)
    error = capsys.readouterr().err
    assert "Traceback" not in error and all(str(copied / f"{n}.png") in error for n in (0, 2, 4))


def test_a_dataset_without_a_good_image_ends(train, copied, capsys):
    spoil(copied, *range(6))
    settings = {"bad_samples": "skip", "max_bad_samples": 50, "verify_images": "none"}
    train(code=66, train_data_dir=copied, **settings)
    assert "Traceback" not in capsys.readouterr().err


def test_a_note_that_cannot_be_written_does_not_hide_the_error(train, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDJOB_NOTES_DIR", str(tmp_path / "file" / "notes"))
    train(code=64, mixed_precision="fp16")
    assert capsys.readouterr().err.startswith("mixed_precision: ")


def test_out_of_memory_is_71_with_a_remedy(train, monkeypatch, capsys):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(diffusion, "loss_of", exhausted)
    train(code=71)
    error = capsys.readouterr().err
    assert "batch_size" in error and "Traceback" not in error


def test_an_unexpected_error_is_70_with_its_traceback_in_the_note(train, monkeypatch, capsys, tmp_path):
    def wrong(*_):
        raise RuntimeError("something unforeseen")

    monkeypatch.setenv("SDJOB_NOTES_DIR", str(tmp_path / "notes"))
    monkeypatch.setattr(diffusion, "loss_of", wrong)
    train(code=70)
    note = json.loads((tmp_path / "notes/rank-0.json").read_text())
    assert (note["code"], note["problems"]) == (70, [])
    assert "something unforeseen" in note["error"]
    assert "loss_of" in note["traceback"]


def test_nothing_is_lost_when_a_run_fails_after_resuming(train, monkeypatch):
    output = train(max_train_steps=2)
    before = snapshot(output / "checkpoint")
    spoiled_loss(monkeypatch, 1, lambda loss: loss * float("nan"))
    train(code=70, max_train_steps=4)
    after = snapshot(output / "checkpoint")
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    assert losses(train(max_train_steps=4)) == losses(train("undisturbed", max_train_steps=4))


def test_a_stop_while_the_worker_starts_writes_nothing(train, monkeypatch, tmp_path):
    (tmp_path / "stop").touch()
    monkeypatch.setenv("SDJOB_STOP_FILE", str(tmp_path / "stop"))
    output = train(code=75, checkpointing_steps=1)
    assert not output.exists()
