"""Tests of the check of what is in the output folder already."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError
from sdlaunch.preflight import leftovers
from tests.sdjob.unprivileged import NOBODY, problems_as_user
from tests.support.launcher import found, prepare

OTHER = 4321  # a uid without a name
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")


@pytest.fixture
def output(workspace) -> Path:
    folder = Path(workspace["OUTPUT_DIR"])
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    return folder


def refusals(output: Path) -> dict[str, str]:
    """Path below the output folder → what an ordinary user is answered about it."""

    def look() -> None:
        problems = leftovers._problems(OutputLayout(output), 0)
        raise JobError([replace(each, subject=str(number)) for number, each in enumerate(problems)])

    texts = [text.removeprefix(f"{output}/") for text in problems_as_user(look, output).values()]
    return {text.split(":")[0].split(" ")[0]: text for text in texts}


def test_wrong_types_and_links_are_named_all_at_once(workspace, output):
    folders = ("checkpoint", "tensorboard", "samples", "class_images", "logs", "run", "cache")
    files = ("report.json", "report.html", "failure.json")
    for name in folders[:5]:
        (output / name).write_text("mine")
    for name in files[:2]:
        (output / name).mkdir()
    for name in (*folders[5:], files[2]):
        (output / name).symlink_to("/nonexistent/far")
    job = prepare(workspace)
    assert found(job) == [("OUTPUT_DIR", 73)] * 10
    assert {problem.found for problem in job.problems} == {
        *(f"{output / name} is a file, not a folder" for name in folders[:5]),
        *(f"{output / name} is a folder, not a file" for name in files[:2]),
        *(
            f"{output / name} is a link to /nonexistent/far, which does not exist"
            for name in (*folders[5:], "failure.json")
        ),
    }
    assert (output / "tensorboard").read_text() == "mine"


def test_a_pipe_is_not_a_file(workspace, output):
    os.mkfifo(output / "report.json")
    (problem,) = prepare(workspace).problems
    assert problem.found == f"{output}/report.json is a device or a socket, not a file"


def test_a_link_to_a_folder_is_refused_too(workspace, output, tmp_path):
    (output / "samples").symlink_to(tmp_path)
    (problem,) = prepare(workspace).problems
    assert problem.found == f"{output}/samples is a link to {tmp_path}"
    assert problem.remedy.startswith("Remove the link")


@pytest.mark.parametrize(
    "name", ["run/notes-0", "run/failure-3.json", "logs/node-0/rank-1.log", "logs/new", "exports"]
)
def test_a_link_where_messages_and_logs_are_written_is_refused_by_any_name(workspace, output, tmp_path, name):
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).symlink_to(tmp_path)
    (problem,) = prepare(workspace).problems
    assert problem.found == f"{output}/{name} is a link to {tmp_path}"


@needs_root
def test_folders_and_files_of_another_user_are_named_with_owner_and_mode(output):
    (output / "samples").mkdir(mode=0o755)
    (output / "run").mkdir(mode=0o777)
    (output / "run").chmod(0o777)
    (output / "run" / "notes-0").mkdir(mode=0o700)
    (output / "run" / "metrics.jsonl").write_text("")
    for path in (output / "samples", output / "run" / "notes-0", output / "run" / "metrics.jsonl"):
        os.chown(path, OTHER, OTHER)
    assert refusals(output) == {
        "samples": f"samples: of user {OTHER}, mode drwxr-xr-x, not writable by user {NOBODY}",
        "run": f"run holds notes-0: of user {OTHER}, mode drwx------, not writable by user {NOBODY}",
        "run/metrics.jsonl": f"run/metrics.jsonl: of user {OTHER}, mode -rw-r--r--, not writable by user {NOBODY}",
    }


@needs_root
def test_the_sticky_bit_keeps_others_from_replacing_a_report(output):
    (output / "report.json").write_text("{}")
    assert refusals(output) == {}
    output.chmod(0o1777)
    assert refusals(output) == {
        "report.json": f"report.json: of user 0 (root), mode -rw-r--r--, not writable by user {NOBODY}"
    }


def test_what_an_earlier_job_of_this_user_left_is_fine(output):
    layout = OutputLayout(output)
    for folder in layout.folders():
        folder.mkdir()
        (folder / "anything").mkdir()
    for file in (*layout.replaced_files(), *layout.opened_files(0)):
        file.write_text("")
    assert list(leftovers._problems(layout, 0)) == []


def test_parts_that_a_killed_job_left_are_no_error(workspace, output):
    layout = OutputLayout(output)
    for folder in (output, *layout.folders()):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".report.json.0a1b2c3d.tmp").write_text("half")
        (folder / ".model-1.0a1b2c3d.tmp").mkdir()
    for name in (".export.tmp", ".checkpoint-000002.tmp", ".checkpoint-000001.old", "checkpoint-000003"):
        (layout.checkpoint / name).mkdir()
        (layout.checkpoint / name / "model.safetensors").write_text("half")
    assert found(prepare(workspace)) == []


def test_a_folder_that_may_not_be_entered_is_left_to_the_check_of_writing(workspace, output):
    job = SimpleNamespace(mounts=SimpleNamespace(output=output), cluster=prepare(workspace).cluster)
    output.chmod(0)

    def look() -> None:
        raise JobError(leftovers.findings(job))

    assert problems_as_user(look, output) == {}


def test_the_owner_is_named_as_far_as_known(tmp_path):
    assert leftovers.owner_and_mode(tmp_path).startswith(f"of user {os.getuid()} (")
