"""`init`: four answers and a look at the mounts become an env file that passes `plan`."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from sdjob.problems import JobError
from sdlaunch import cli, plan
from sdlaunch.preflight import estimates
from sdlaunch.verbs import init
from tests.sdlaunch.workspace import HOME


def proposed(workspace, tmp_path, *flags, ask=None, **arguments) -> init.Proposal:
    return init.prepare({"to": str(tmp_path / "job.env"), **arguments}, flags, workspace, HOME, ask)


def refused(workspace, tmp_path, *flags, **arguments):
    with pytest.raises(JobError) as caught:
        proposed(workspace, tmp_path, *flags, **arguments)
    assert not (tmp_path / "job.env").exists()
    return caught.value.problems


def values(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_a_file_from_flags_passes_plan(workspace, tmp_path, capsys):
    path = tmp_path / "job.env"
    words = [
        "init",
        "model=tiny",
        "data=images",
        "learn=a photo of zwx cat",
        "length=90",
        f"to={path}",
        "lr=1e-6",
    ]
    assert cli.main(words, workspace, HOME) == 0
    text = path.read_text()
    assert values(text) == [
        "lr=1e-6",
        "model_name=tiny",
        "dataset_name=images",
        "recipe=dreambooth",
        "instance_prompt=a photo of zwx cat",
        "validation_prompts=a photo of zwx cat",
        "num_train_step=90",
    ]
    assert "# DreamBooth: prompt of the subject, with a rare word as its name" in text
    assert f"start it:         bash train.sh ENV_FILE={path}" in (shown := capsys.readouterr().out)
    assert "dataset: " in shown and "(5 images, folder)" in shown
    job = plan.prepare([("ENV_FILE", str(path))], workspace, HOME)
    assert job.problems == ()
    assert {name: job.settings[name].value for name in ("num_train_step", "lr", "instance_prompt")} == {
        "num_train_step": 90,
        "lr": 1e-6,
        "instance_prompt": "a photo of zwx cat",
    }


def test_the_only_model_and_dataset_need_no_name(workspace, tmp_path):
    config = Path(workspace["MODEL_DIR"]) / "tiny/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 32}))
    found = proposed(workspace, tmp_path)
    assert values(found.text) == [
        "recipe=dreambooth",
        "instance_prompt=a photo of sks dog",
        "validation_prompts=a photo of sks dog",
        "num_train_step=400",
        "resolution=64",
    ]
    assert found.because == ("learn: one subject, since the images have no captions",)


def test_captions_are_learnt_where_there_are_some(workspace, tmp_path):
    folder = Path(workspace["DATASET_DIR"]) / "images"
    for number in range(5):
        (folder / f"{number}.txt").write_text("a square")
    found = proposed(workspace, tmp_path, length="quick")
    assert values(found.text)[:2] == ["recipe=text_to_image", "epoch=5"] and found.because == ()
    found = proposed(workspace, tmp_path, learn="a photo of zwx cat", length="2 epochs")
    assert "recipe=dreambooth" in values(found.text) and "epoch=2" in values(found.text)


def test_a_terminal_asks_for_what_is_missing(workspace, tmp_path):
    asked = []

    def ask(question):
        asked.append(question)
        return {"learn": "a zwx toy", "length": ""}.get(question.name, "")

    found = proposed(workspace, tmp_path, ask=ask, model="tiny")
    assert [(each.name, each.default) for each in asked] == [
        ("data", ""),
        ("learn", "a photo of sks dog"),
        ("length", "normal"),
    ]
    assert asked[0].text.endswith(f"or a path; empty: {workspace['DATASET_DIR']}/images")
    assert values(found.text)[1:4] == [
        "recipe=dreambooth",
        "instance_prompt=a zwx toy",
        "validation_prompts=a zwx toy",
    ]


def test_settings_of_the_command_line_are_kept(workspace, tmp_path):
    given = (
        ("num_train_step", "77"),
        ("recipe", "dreambooth"),
        ("resolution", "32"),
        ("instance_prompt", "a zwx"),
    )
    found = values(proposed(workspace, tmp_path, *given).text)
    assert found == [
        *("num_train_step=77", "recipe=dreambooth", "resolution=32", "instance_prompt=a zwx"),
        "validation_prompts=a zwx",
    ]


def test_several_models_are_offered(workspace, tmp_path):
    shutil.copytree(f"{workspace['MODEL_DIR']}/tiny", f"{workspace['MODEL_DIR']}/other")
    asked = []

    def ask(question):
        asked.append(question.text)
        return "other" if question.name == "model" else ""

    assert "model_name=other" in values(proposed(workspace, tmp_path, ask=ask).text)
    assert asked[0].endswith("there are: other, tiny")


def test_settings_fit_the_memory(workspace, tmp_path, monkeypatch):
    job = plan.prepare([("resolution", "64"), ("batch_size", "4")], workspace, HOME)
    (line,) = [line for line in job.arithmetic if line.startswith("memory")]
    find, needed = plan.devices.find, []
    monkeypatch.setattr(estimates, "_memory", lambda job: int(0.95 * needed[0]) if needed else None)
    estimate = estimates.memory_estimate.estimate
    monkeypatch.setattr(
        plan.devices, "find", lambda *given: dataclasses.replace(find(*given), memory=1 << 40)
    )
    captured = []

    def remembered(*given):
        captured.append(estimate(*given))
        return captured[-1]

    monkeypatch.setattr(estimates.memory_estimate, "estimate", remembered)
    assert "batch_size=4" in values(proposed(workspace, tmp_path, ("batch_size", "4")).text)
    needed.append(captured[-1].total)
    found = proposed(workspace, tmp_path, ("batch_size", "4"))
    assert found.job.problems == () and line.startswith("memory: at least")
    assert "gradient_checkpointing=1" in values(found.text)
    assert found.because[-1] == "gradient_checkpointing=1: to fit the memory"


@pytest.mark.parametrize("length", ["9" * 5000, "٣"])
def test_a_number_that_is_none_is_refused(workspace, tmp_path, length):
    assert {each.code for each in refused(workspace, tmp_path, length=length)} == {64}


def test_what_is_refused(workspace, tmp_path):
    (problem,) = refused(workspace, tmp_path, length="forever")
    assert (problem.code, problem.subject, problem.found) == (64, "length", "found 'forever'")
    assert "10 epochs" in problem.remedy
    found = refused(workspace, tmp_path, learn="a\ndog")
    assert {(each.code, each.found) for each in found} == {(64, "has several lines")}
    assert {each.code for each in refused(workspace, tmp_path, ("lr", "fast"))} == {64}
    shutil.copytree(f"{workspace['MODEL_DIR']}/tiny", f"{workspace['MODEL_DIR']}/other")
    (problem,) = refused(workspace, tmp_path)
    assert problem.code == 66 and "2 pipelines" in problem.found
    assert proposed(workspace, tmp_path, model="other").job.problems == ()
    (problem,) = refused({**workspace, "DATASET_DIR": str(tmp_path / "none")}, tmp_path, model="other")
    assert (problem.code, problem.subject) == (66, "DATASET_DIR")


def test_nothing_is_overwritten(workspace, tmp_path, capsys):
    path = tmp_path / "job.env"
    path.write_text("mine")
    assert cli.main(["init", f"to={path}"], workspace, HOME) == 73
    assert "to=FILE" in capsys.readouterr().err
    assert path.read_text() == "mine"
    (tmp_path / "job.env").unlink()
    (tmp_path / "job.env").symlink_to(tmp_path / "elsewhere")
    assert cli.main(["init", f"to={path}"], workspace, HOME) == 73
    assert not (tmp_path / "elsewhere").exists()
    assert cli.main(["init", f"to={tmp_path}/none/job.env"], workspace, HOME) == 73
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err
    assert cli.main(["init", "something"], workspace, HOME) == 64
