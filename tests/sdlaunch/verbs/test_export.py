"""`export`: which checkpoint, where to, and what is refused; the worker's part is tested with the worker."""

import json
import shutil
from pathlib import Path

import pytest

from sdjob.output import run_settings
from sdjob.output.checkpoint_files import MODEL, SETTINGS, STATE
from sdjob.output.layout import OutputLayout, write_manifest
from sdjob.problems import JobError
from sdjob.settings import flags
from sdjob.settings.run_spec import RunSpec
from sdlaunch import cli
from sdlaunch.preflight import estimates
from sdlaunch.verbs import export
from tests.sdlaunch.workspace import HOME

FOLDER = "checkpoint-000400"


@pytest.fixture
def output(workspace):
    """The output folder of a run with two checkpoints."""
    layout = OutputLayout(Path(workspace["OUTPUT_DIR"]))
    for step in (200, 400):
        folder = layout.step_folder(step)
        folder.mkdir(parents=True)
        (folder / STATE).write_text(json.dumps({"format": 3, "step": step}))
        model = f"{workspace['MODEL_DIR']}/tiny"
        run_settings.write(
            folder, RunSpec(pretrained_model_name_or_path=model, output_dir="/old", use_ema=True)
        )
        (folder / MODEL).touch()
        write_manifest(folder)
    return layout.root


def prepared(workspace, *given, **arguments) -> export.Export:
    return export.prepare({"checkpoint": FOLDER, **arguments}, given, workspace, HOME)


def refused(workspace, *given, **arguments):
    with pytest.raises(JobError) as caught:
        prepared(workspace, *given, **arguments)
    (problem,) = caught.value.problems
    return problem


def test_the_command_of_the_worker(workspace, output):
    job = prepared(workspace, ("export_dtype", "fp16"))
    program, *words = job.argv[1:5]
    assert (program, words) == (
        "-m",
        [export.MODULE, str(output / "checkpoint" / FOLDER), str(output / "exports" / FOLDER)],
    )
    assert job.argv[5] == "--weights=ema"
    spec = flags.parse(job.argv[6:])
    assert (spec.export_dtype, spec.device, spec.output_dir) == ("fp16", "cpu", str(output))
    assert spec.pretrained_model_name_or_path == f"{workspace['MODEL_DIR']}/tiny" and spec.use_ema


def test_the_environment_of_the_whole_job_is_not_in_the_way(workspace, output):
    job = prepared({**workspace, "lora_rank": "4", "num_train_step": "9", "save_precision": "bf16"})
    assert (job.spec.lora_rank, job.spec.max_train_steps, job.spec.export_dtype) == (0, 400, "bf16")


def test_the_settings_of_a_checkpoint_name_no_folder_that_is_written(workspace, output, tmp_path):
    folder = output / "checkpoint" / FOLDER
    words = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps([*words, f"--cache_dir={tmp_path}/private"]))
    write_manifest(folder)
    assert (prepared(workspace).spec.cache_dir, prepared(workspace).spec.output_dir) == (None, str(output))
    assert prepared(workspace, ("cache_dir", str(tmp_path / "mine"))).spec.cache_dir == str(tmp_path / "mine")


@pytest.mark.parametrize("word", ["--help", "-h", "-hh"])
def test_settings_that_ask_for_help_are_refused_and_not_answered(workspace, output, word, capsys):
    folder = output / "checkpoint" / FOLDER
    (folder / SETTINGS).write_text(json.dumps([word]))
    write_manifest(folder)
    assert refused(workspace).code == 66
    assert capsys.readouterr().out == ""


def test_a_folder_and_a_choice_of_weights(workspace, output, tmp_path):
    (tmp_path / "empty").mkdir()
    job = prepared(workspace, to=str(tmp_path / "empty"), weights="raw")
    assert (job.folder, job.weights) == (tmp_path / "empty", "raw")
    assert (
        prepared(workspace, checkpoint=str(output / "checkpoint/checkpoint-000200")).checkpoint.name
        == "checkpoint-000200"
    )


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            "checkpoint-000300",
            "Did you mean checkpoint-000400? There are checkpoint-000200, checkpoint-000400.",
        ),
        ("", "There are checkpoint-000200, checkpoint-000400."),
    ],
)
def test_an_unknown_checkpoint_is_answered_with_those_that_there_are(workspace, output, name, remedy):
    problem = refused(workspace, checkpoint=name)
    assert (problem.code, problem.subject, problem.remedy) == (64, "checkpoint", remedy)


def test_an_output_folder_without_checkpoints(workspace):
    problem = refused(workspace)
    assert (problem.code, problem.subject) == (66, "OUTPUT_DIR")
    assert "holds no step checkpoints" in problem.found


def test_a_damaged_checkpoint(workspace, output):
    (output / "checkpoint" / FOLDER / "state.json").unlink()
    problem = refused(workspace)
    assert (problem.code, problem.found) == (66, "state.json is missing")


def test_a_target_with_files_is_never_written_to(workspace, output, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    problem = refused(workspace, to=str(tmp_path / "full"))
    assert (problem.code, problem.subject) == (73, "to") and "is not empty" in problem.found
    assert refused(workspace, to=str(tmp_path / "full/mine")).code == 73
    assert refused(workspace, to=str(tmp_path / "full/mine/below")).code == 73


def test_a_folder_of_exports_that_is_a_link_is_named(workspace, output, tmp_path):
    (output / "exports").symlink_to(tmp_path)
    problem = refused(workspace)
    assert (problem.code, problem.subject) == (
        73,
        "to",
    ) and f"exports is a link to {tmp_path}" in problem.found


def test_a_disk_that_is_too_small(workspace, output, monkeypatch):
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    problem = refused(workspace)
    assert (problem.code, problem.subject) == (73, "to") and "needed" in problem.found


def test_the_model_has_moved(workspace, output, tmp_path):
    moved = Path(workspace["MODEL_DIR"]).rename(tmp_path / "elsewhere")
    problem = refused(workspace)
    assert (problem.code, problem.subject) == (66, "MODEL_DIR")
    assert "the model that the run started from" in problem.remedy
    job = prepared({**workspace, "MODEL_DIR": str(moved)})
    assert job.spec.pretrained_model_name_or_path == str(moved / "tiny")


@pytest.mark.parametrize(("weights", "found"), [("best", "found 'best'"), ("ema", "use_ema=0")])
def test_weights_that_do_not_exist(workspace, output, weights, found):
    folder = output / "checkpoint" / FOLDER
    run_settings.write(folder, RunSpec(pretrained_model_name_or_path="m", output_dir="o"))
    write_manifest(folder)
    problem = refused(workspace, weights=weights)
    assert (problem.code, problem.subject) == (64, "weights") and found in problem.found


def test_settings_that_an_export_does_not_read(workspace, output):
    problem = refused(workspace, ("lr", "1"), ("batch_size", "2"))
    assert (problem.code, problem.found) == (64, "export with lr, batch_size")


def test_all_problems_at_once_and_the_exit_code_of_the_first(workspace, output, tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["export", f"checkpoint={FOLDER}", f"to={tmp_path / 'file'}", "lr=1", "--nothing"]
    assert cli.main(argv, workspace, HOME) == 64
    printed = capsys.readouterr().err
    assert "3 problems; exit code 64" in printed and "is a file" in printed


def test_arguments_take_the_next_word_too():
    request = cli.parse(["export", "--checkpoint", FOLDER, "--to", "x"])
    assert (request.arguments, request.problems) == ({"checkpoint": FOLDER, "to": "x"}, ())
