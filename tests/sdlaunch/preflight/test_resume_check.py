"""Where a job begins: what `plan` and `check` say of the checkpoints in the output folder."""

import json
from pathlib import Path

import pytest

from sdjob.dataset.concepts import concepts_of
from sdjob.dataset.detect import find_dataset
from sdjob.model.pipeline import find_pipeline
from sdjob.output import fingerprint
from sdjob.output.layout import INDEX_FILE, OutputLayout, write_manifest
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight import resume_check
from tests.support.launcher import found, prepare

LONG = {"num_train_step": "62"}
PRIOR = {"with_prior_preservation": "1", "class_prompt": "a photo of a dog"}


@pytest.fixture
def layout(tmp_path) -> OutputLayout:
    return OutputLayout(tmp_path / "output")


def save(layout: OutputLayout, step: int = 60, **settings) -> Path:
    """A whole checkpoint of the job in `place`, as the worker leaves it."""
    root = layout.root.parent
    data = root / "dataset/images"
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", instance_data_dir=str(data), **settings)
    model = find_pipeline(root / "model", None, allow_pickle=False)
    info = find_dataset(data, None, captions=False, image_column="image", caption_column="text")
    facts = fingerprint.facts_of(
        spec, model.architecture, fingerprint.model_facts(model), [info], concepts_of(spec)
    )
    folder = layout.step_folder(step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"format": 2, "step": step, "fingerprint": facts}))
    (folder / "model.safetensors").touch()
    write_manifest(folder)
    return folder


def line_of(workspace, **variables: str) -> str:
    job = prepare(workspace, **variables)
    assert job.problems == ()
    return next(line for line in job.arithmetic if line.startswith("resume: "))


def test_the_plan_says_where_the_job_begins(workspace, layout):
    assert line_of(workspace, **LONG) == "resume: starts at the beginning"
    save(layout)
    assert line_of(workspace, **LONG) == "resume: from step 60 of 62"
    assert line_of(workspace, **LONG, resume_from_checkpoint="checkpoint-60") == "resume: from step 60 of 62"
    assert line_of(workspace, **LONG, resume="never") == "resume: starts at the beginning"
    assert line_of(workspace, num_train_step="60") == "resume: from step 60 of 60"  # no result yet
    (layout.checkpoint / INDEX_FILE).touch()
    layout.report.write_text('{"steps": 60}')
    assert line_of(workspace, num_train_step="60") == "resume: already finished, at step 60"
    assert line_of(workspace, **LONG) == "resume: from step 60 of 62"


def test_settings_of_another_run_are_refused_before_anything_starts(workspace, layout):
    save(layout)
    job = prepare(workspace, **LONG, instance_prompt="a photo of zzz cat", seed="7")
    assert found(job) == [("instance_prompt", 64), ("seed", 64)]
    assert job.problems[0].found == "'a photo of zzz cat' now, 'a photo of sks dog' in checkpoint-000060"
    assert not [line for line in job.arithmetic if line.startswith("resume")]
    assert prepare(workspace, **LONG, instance_prompt="a photo of zzz cat", resume="never").problems == ()
    assert prepare(workspace, lr="1e-4", batch_size="2").problems == ()  # these may change


def test_another_model_or_other_images_are_refused(workspace, layout, tmp_path, monkeypatch):
    save(layout)
    (tmp_path / "dataset/images/4.png").unlink()
    monkeypatch.setattr(resume_check, "_COMPARED_FILES", 3)
    assert prepare(workspace).problems == ()  # too many files to look at each of them here
    monkeypatch.setattr(resume_check, "_COMPARED_FILES", 4)
    assert found(prepare(workspace)) == [("dataset_name", 64)]
    with next((tmp_path / "model/tiny/unet").glob("*.safetensors")).open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\1")
    assert found(prepare(workspace)) == [("dataset_name", 64), ("model_name", 64)]


def test_images_of_the_class_and_subjects_are_compared_too(workspace, layout, tmp_path):
    classes = tmp_path / "classes"
    (tmp_path / "dataset/images").rename(classes)
    (tmp_path / "dataset/images").symlink_to(classes)
    given = {"class_data_dir": str(classes), "num_class_images": "5"}
    save(layout, with_prior_preservation=True, class_prompt="a photo of a dog", **given)
    assert prepare(workspace, **PRIOR, **given).problems == ()
    assert found(prepare(workspace, **PRIOR, num_class_images="5")) == [("class_data_dir", 64)]
    subjects = tmp_path / "subjects.json"
    subjects.write_text(json.dumps([{"instance_data_dir": str(classes), "instance_prompt": "x"}]))
    assert ("concepts_list", 64) in found(prepare(workspace, concepts_list=str(subjects)))


def test_a_broken_checkpoint_is_passed_over_with_a_warning(workspace, layout):
    save(layout, 40)
    broken = save(layout, 60)
    (broken / "state.json").write_text("{}")
    assert line_of(workspace, **LONG) == "resume: from step 40 of 62"
    (warning,) = [text for text in prepare(workspace, **LONG).warnings if "checkpoint-000060" in text]
    assert "is incomplete or damaged and is skipped: state.json has 2 bytes instead of" in warning
    assert found(prepare(workspace, resume=str(broken))) == [("resume", 64)]


def test_a_checkpoint_of_another_format_is_refused(workspace, layout):
    folder = save(layout)
    values = json.loads((folder / "state.json").read_text()) | {"format": 1}
    (folder / "state.json").write_text(json.dumps(values))
    write_manifest(folder)
    (problem,) = prepare(workspace).problems
    assert (problem.code, problem.subject) == (64, "resume")
    assert "format 1, this version reads 2 and 3" in problem.found


def test_a_script_resumes_in_its_own_way(workspace, layout, tmp_path):
    save(layout)
    (tmp_path / "mine.py").touch()
    job = prepare(workspace, script=str(tmp_path / "mine.py"), seed="7")
    assert job.problems == ()
    assert not [line for line in job.arithmetic if line.startswith("resume")]
