"""Stopped, killed, resumed: in the end everything is as if nothing had happened."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from sdjob.output.layout import LORA_FILE, is_exported, write_manifest
from sdjob.page import page
from sdtrain import run
from sdtrain.checkpoint import checkpoint
from sdtrain.export import export
from tests.support.worker import Killed, in_process, losses, scalars, snapshot, torchrun

STEPS = 6
# Steps that end in the middle of an epoch of 6 images, with every kind of state: EMA, momentum, schedule.
SETTINGS = {
    "max_train_steps": STEPS,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "use_ema": True,
    "ema_decay": 0.7,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "random_flip": True,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, eps_model, captioned):
    """The run that every interrupted one must equal."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    inputs = {"pretrained_model_name_or_path": eps_model, "train_data_dir": captioned}
    assert in_process(output_dir=output, **inputs, **SETTINGS) == 0
    return output


def result(output) -> dict[str, str]:
    """The trained pipeline, without the step folders."""
    return {n: h for n, h in snapshot(output / "checkpoint").items() if not n.startswith("checkpoint-")}


def step_folders(output) -> list[str]:
    return sorted(path.name for path in (output / "checkpoint").glob("checkpoint-*"))


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def kill():
    raise Killed


def test_sigterm_and_resume(train, at_step, undisturbed):
    at_step(3, terminate)
    output = train(code=75, **SETTINGS)
    assert step_folders(output) == ["checkpoint-000003"]
    assert not is_exported(output / "checkpoint", lora=False)
    at_step(0)
    train(**SETTINGS)
    assert losses(output) == losses(undisturbed)
    assert result(output) == result(undisturbed)
    report, wanted = (json.loads((o / "report.json").read_text()) for o in (output, undisturbed))
    assert report["mean_loss"] == pytest.approx(wanted["mean_loss"], rel=1e-6)
    assert report["final_loss"] == wanted["final_loss"]
    assert (report["steps"], report["resumed_from_step"]) == (STEPS, 3)


def test_the_stop_file_ends_with_0_and_a_note(train, at_step, monkeypatch, tmp_path, undisturbed):
    stop, notes = tmp_path / "stop", tmp_path / "notes"
    monkeypatch.setenv("SDJOB_STOP_FILE", str(stop))
    monkeypatch.setenv("SDJOB_NOTES_DIR", str(notes))
    at_step(2, stop.touch)
    output = train(**SETTINGS)
    note = json.loads((notes / "rank-0.json").read_text())
    assert (note["code"], note["step"], note["rank"]) == (75, 2, 0)
    assert step_folders(output) == ["checkpoint-000002"]
    stop.unlink()
    at_step(0)
    train(**SETTINGS)
    assert losses(output) == losses(undisturbed)
    assert result(output) == result(undisturbed)


def test_a_stop_of_one_rank_stops_all_at_the_same_step(train, at_step):
    """One step later: the ranks read in a step what they asked in the one before."""
    at_step(2, lambda: terminate() if os.environ["RANK"] == "1" else None)
    output = train(ranks=2, code=75, max_train_steps=9)
    assert step_folders(output) in (["checkpoint-000002"], ["checkpoint-000003"])  # at once after a long step


def test_resume_on_another_number_of_processes(train, at_step, undisturbed):
    at_step(3, terminate)
    output = train(code=75, **SETTINGS)
    at_step(0)
    train(ranks=2, **{**SETTINGS, "train_batch_size": 1})
    assert losses(output) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_resume_on_the_same_two_processes_is_exact(train, at_step):
    settings = {**SETTINGS, "train_batch_size": 1}
    undisturbed = train("undisturbed", ranks=2, **settings)
    at_step(3, terminate)
    output = train(ranks=2, code=75, **settings)
    at_step(0)
    train(ranks=2, **settings)
    assert losses(output) == losses(undisturbed)
    assert result(output) == result(undisturbed)


def test_lora_resumes_exactly(train, at_step):
    settings = {**SETTINGS, "lora_rank": 2, "recipe": "dreambooth", "train_text_encoder": True}
    undisturbed = train("undisturbed", **settings)
    at_step(4, terminate)
    output = train(code=75, **settings)
    at_step(0)
    train(**settings)
    assert losses(output) == losses(undisturbed)
    # Not the files' hashes: safetensors writes its metadata in any order.
    weights, wanted = (load_file(o / f"checkpoint/{LORA_FILE}") for o in (output, undisturbed))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_a_run_with_caches_and_a_changed_objective_resumes_exactly(train, at_step):
    settings = {
        **SETTINGS,
        "center_crop": True,
        "cache_latents": "disk",
        "cache_text_embeddings": "memory",
        "snr_gamma": 5.0,
        "noise_offset": 0.1,
        "input_perturbation": 0.1,
        "proportion_empty_prompts": 0.3,
        "max_token_length": 150,
    }
    undisturbed = train("undisturbed", **settings)
    at_step(3, terminate)
    train(code=75, **settings)
    at_step(0)
    assert losses(train(**settings)) == losses(undisturbed)


@pytest.mark.parametrize(("optimizer", "rate"), [("adafactor", 1e-3), ("prodigy", 1.0)])
def test_other_optimizers_resume_exactly(train, at_step, optimizer, rate):
    """Prodigy's estimate of the rate is not a setting: it must not start again."""
    settings = {"max_train_steps": 4, "optimizer": optimizer, "learning_rate": rate, "lora_rank": 2}
    undisturbed = train("undisturbed", **settings)
    at_step(2, terminate)
    train(code=75, **settings)
    at_step(0)
    assert losses(train(**settings)) == losses(undisturbed)


def test_a_checkpoint_damaged_in_place_is_skipped(train, undisturbed, capsys):
    output = train(**{**SETTINGS, "max_train_steps": 4}, checkpointing_steps=2)
    path = output / "checkpoint/checkpoint-000004/model.safetensors"
    path.write_bytes(b"?" * path.stat().st_size)
    capsys.readouterr()
    train(**SETTINGS)
    assert "damaged and is skipped: model.safetensors has changed" in (said := capsys.readouterr().out)
    assert "resuming from" in said and "checkpoint-000002" in said
    assert losses(output) == losses(undisturbed)


def test_another_tokenizer_is_refused(train, eps_model, tmp_path, capsys):
    model = shutil.copytree(eps_model, tmp_path / "model")
    train(max_train_steps=1, pretrained_model_name_or_path=model)
    (model / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    train(max_train_steps=2, pretrained_model_name_or_path=model, code=64)
    assert "model_name: tokenizer " in capsys.readouterr().err


def test_a_checkpoint_of_format_2_resumes_exactly(train, at_step, undisturbed):
    """Version 0.1 called the position in the sample stream `place`, and kept the history of batch sizes."""
    at_step(3, terminate)
    output = train(code=75, **SETTINGS)
    folder = output / "checkpoint/checkpoint-000003"
    values = json.loads((folder / "state.json").read_text())
    values |= {"format": 2, "place": values.pop("samples_seen")}
    values["past"] = [{"steps": 3, "global_batch": values.pop("global_batch")}]
    (folder / "state.json").write_text(json.dumps(values))
    write_manifest(folder)
    at_step(0)
    train(**SETTINGS)
    assert losses(output) == losses(undisturbed)
    assert result(output) == result(undisturbed)


DEATHS = {
    "in a step": (None, "show"),
    "while weights are written": (checkpoint, "write_manifest"),
    "before the rename": (checkpoint, "sync_tree"),
    "after the rename": (checkpoint, "_delete_oldest"),
    "before the export": (export, "export"),
    "in the export": (export, "_put_in_place"),
    "before the page": (page, "render"),
    "before the report": (run.report, "write"),
}


@pytest.mark.parametrize("where", DEATHS)
def test_death_and_resume(where, train, at_step, monkeypatch, undisturbed, inputs, tmp_path):
    settings = {**SETTINGS, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
    module, name = DEATHS[where]
    with monkeypatch.context() as patch:
        if module is None:
            at_step(5, kill)
        else:
            calls = iter(
                (False, True, True)
            )  # dies at the second save, or where there is one call only, at it
            original = getattr(module, name)

            def function(*arguments, **named):
                if module is not checkpoint or next(calls):
                    raise Killed
                return original(*arguments, **named)

            patch.setattr(module, name, function)
        with pytest.raises(Killed):
            train(**settings)
    assert not list(tmp_path.rglob("report.json"))  # with it the run is finished, and the page stays
    assert bool(list(tmp_path.rglob("report.html"))) == (where == "before the report")
    at_step(0)
    output = train(**settings)
    assert losses(output) == losses(undisturbed)
    assert result(output) == result(undisturbed)
    assert step_folders(output) == ["checkpoint-000006"]
    assert not list(output.glob("checkpoint/.*"))
    report = json.loads((output / "report.json").read_text())
    assert report["final_loss"] == pytest.approx(losses(undisturbed)[-1])


def test_sigterm_to_torchrun_saves(inputs, tmp_path):
    """torchrun signals the whole group of each worker, its loader processes too."""
    output = tmp_path / "output"
    settings = {**inputs, "output_dir": output, "max_train_steps": 100_000, "dataloader_num_workers": 1}
    with torchrun(2, **settings, checkpointing_steps=100_000, logging_steps=100_000) as process:
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("train ") for line in lines)
        process.terminate()
        out = "".join(lines)
        process.wait(120)
    assert len(step_folders(output)) == 1, out
    assert "Traceback" not in out.split("torch/distributed")[0], out


def test_a_finished_run_stays_finished_and_more_steps_continue_it(train, capsys):
    long = train("long", max_train_steps=4)
    output = train(max_train_steps=2)
    before = snapshot(output)
    capsys.readouterr()
    train(max_train_steps=2)
    assert "already finished" in capsys.readouterr().out
    assert snapshot(output) == before
    train(max_train_steps=4)
    assert losses(output) == losses(long)
    assert result(output) == result(long)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_stopped_in_the_last_step_still_gives_the_result(train, at_step, steps_before):
    """… and not that of an earlier, shorter run in the same folder."""
    undisturbed = train("undisturbed", max_train_steps=4)
    if steps_before:
        train(max_train_steps=steps_before)
    at_step(4, terminate)
    train(max_train_steps=4, code=75)
    at_step(0)
    output = train(max_train_steps=4)
    assert result(output) == result(undisturbed)
    report = json.loads((output / "report.json").read_text())
    wanted = json.loads((undisturbed / "report.json").read_text())
    assert report["steps"] == 4
    assert report["final_loss"] == wanted["final_loss"]
    assert report["mean_loss"] == pytest.approx(wanted["mean_loss"], rel=1e-6)


def test_fewer_steps_than_are_done_are_reported_as_what_they_are(train):
    output = train(max_train_steps=4)
    wanted = json.loads((output / "report.json").read_text())["mean_loss"]
    (output / "checkpoint/model_index.json").unlink()
    train(max_train_steps=2)
    report = json.loads((output / "report.json").read_text())
    assert (report["steps"], report["mean_loss"]) == (4, pytest.approx(wanted))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 8), ("lora_rank", 2), ("use_ema", True), ("recipe", "dreambooth")],
)
def test_another_run_in_the_same_folder_is_refused(train, capsys, name, value):
    output = train()
    before = snapshot(output)
    train(code=64, max_train_steps=5, **{name: value})
    error = capsys.readouterr().err
    assert error.startswith(name) or f"\n{name}" in error
    assert "resume=never" in error
    assert snapshot(output) == before


def test_resume_never_keeps_the_earlier_result(train):
    output = train()
    before = snapshot(output / "checkpoint")
    train(resume="never", seed=8)
    assert snapshot(output / "earlier-1" / "checkpoint") == before
    other = train("other", seed=8)
    assert result(output) == result(other)
    assert losses(output) == losses(other)  # TensorBoard shows the new run, not both on top of each other


def test_resume_from_a_path(train, at_step):
    longer = train("longer", checkpointing_steps=2, max_train_steps=6)
    output = train(checkpointing_steps=2, max_train_steps=4)
    (output / "checkpoint/checkpoint-000004/model.safetensors").write_bytes(b"broken")
    train(max_train_steps=6, resume=output / "checkpoint/checkpoint-000002")
    assert losses(output) == losses(longer)
    assert result(output) == result(longer)


def test_going_back_keeps_later_checkpoints_and_happens_once(train, capsys):
    output = train(checkpointing_steps=2, max_train_steps=6)
    later = {step: snapshot(output / f"checkpoint/checkpoint-{step:06d}") for step in (4, 6)}
    back = {"resume": output / "checkpoint/checkpoint-000002", "learning_rate": 2e-3}
    train(checkpointing_steps=2, max_train_steps=4, **back)
    kept = output / "earlier-1" / "checkpoint"
    assert {step: snapshot(kept / f"checkpoint-{step:06d}") for step in (4, 6)} == later
    assert (kept / "model_index.json").is_file()
    capsys.readouterr()
    train(max_train_steps=4, **back)
    assert "already finished: 4 steps" in capsys.readouterr().out
    train(max_train_steps=5, **back)
    assert "resuming from" in (said := capsys.readouterr().out) and "checkpoint-000004" in said
    assert not (output / "earlier-2").exists()


def test_a_restarted_worker_continues_although_the_run_started_afresh(train, monkeypatch, capsys):
    train(resume="never", max_train_steps=2)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    output = train(resume="never", max_train_steps=3)
    assert "checkpoint-000002" in capsys.readouterr().out
    assert not (output / "earlier-1").exists()


def test_a_worker_that_had_not_started_training_before_its_restart_starts_afresh(
    train, monkeypatch, tmp_path, capsys
):
    """An attempt that crashed while it was loading has moved nothing aside: the files are another run's."""
    train(max_train_steps=2, seed=7)
    monkeypatch.setenv("SDJOB_NOTES_DIR", str(tmp_path / "notes"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    output = train(resume="never", max_train_steps=2, seed=8)
    assert "starting from the beginning" in capsys.readouterr().out
    assert (output / "earlier-1/checkpoint/checkpoint-000002").is_dir()
    train(resume="never", max_train_steps=3, seed=8)
    assert "checkpoint-000002" in capsys.readouterr().out
    assert not (output / "earlier-2").exists()


def test_a_changed_batch_size_goes_on_with_the_next_images(train, at_step):
    """6 images: 2 steps of 1, then 2 of 2."""
    train(max_train_steps=2)
    output = train(max_train_steps=4, train_batch_size=2)
    epochs = scalars(output)["train/epoch"]
    assert epochs == pytest.approx({1: 1 / 6, 2: 2 / 6, 3: 4 / 6, 4: 6 / 6})


def test_epochs_count_over_the_whole_run_with_another_batch_too(train):
    """6 images: an epoch in 6 steps of 1, another one in 2 of 4, the last of which reaches into the third."""
    train(max_train_steps=None, num_train_epochs=1)
    output = train(max_train_steps=None, num_train_epochs=2, train_batch_size=4)
    assert list(scalars(output)["train/epoch"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert scalars(output)["train/epoch"][8] == pytest.approx(14 / 6)


def test_a_changed_optimizer_setting_counts_after_a_resume(train):
    settings = {"max_train_steps": 3, "learning_rate": 1e-2}
    plain = train("plain", max_train_steps=2, learning_rate=1e-2)
    decayed = train("decayed", max_train_steps=2, learning_rate=1e-2)
    train("plain", **settings)
    train("decayed", **settings, adam_weight_decay=10.0)
    assert result(plain) != result(decayed)
