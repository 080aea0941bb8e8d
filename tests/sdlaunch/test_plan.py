"""`plan`, `check` and --dry-run through train.sh: what they print, what they refuse, and with which code."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sdlaunch import plan
from tests.sdlaunch.workspace import HOME, clean_environment, launch, make_workspace, plan_json

TUTORIAL = {
    "NPROC_PER_NODE": "2",
    "batch_size": "1",
    "lr": "1e-5",
    "num_train_step": "20",
    "plugin": "torch_ddp",
}


def prepare(workspace, *flags, **variables):
    return plan.prepare(flags, clean_environment(**{**workspace, **variables}), HOME)


def found(job):
    return [(problem.subject, problem.code) for problem in job.problems]


# --- the printed contract ----------------------------------------------------------------------------


def test_plan_json(workspace, tmp_path):
    code, printed = plan_json(**workspace, **TUTORIAL)
    assert (code, printed["problems"]) == (0, [])
    assert {"settings", "mounts", "argv", "env", "problems"} <= printed.keys()
    settings = printed["settings"]
    assert settings["lr"] == {"value": 1e-5, "source": "environment: lr", "flag": "--learning_rate"}
    assert settings["batch_size"]["value"] == 1
    assert settings["num_train_step"]["value"] == 20
    assert settings["recipe"] == {"value": "dreambooth", "source": "default", "flag": "--recipe"}
    assert settings["NPROC_PER_NODE"] == {"value": 2, "source": "environment: NPROC_PER_NODE"}
    assert settings["MODEL_DIR"]["value"] == str(tmp_path / "model")
    assert settings["mixed_precision"]["value"] == "no"
    assert printed["mounts"]["MODEL_DIR"]["uses"] == str(tmp_path / "model" / "tiny")
    assert printed["mounts"]["DATASET_DIR"]["uses"] == str(tmp_path / "dataset" / "images")
    assert "--nproc-per-node=2" in printed["argv"]
    assert f"--instance_data_dir={tmp_path / 'dataset' / 'images'}" in printed["argv"]
    assert printed["env"]["SDJOB_NOTES_DIR"] == str(tmp_path / "output" / "run" / "notes-0")


def test_nothing_is_left_behind(workspace, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for verb in ("plan", "check", "--dry-run"):
        assert launch(verb, **workspace).returncode == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(HOME.glob("project/sdlaunch/__pycache__/plan.*.tmp"))


def test_check_json(workspace):
    done = launch("check", "--json", **workspace)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"problems": []})
    done = launch("check", "--json", **workspace, lr="x")
    (problem,) = json.loads(done.stdout)["problems"]
    assert done.returncode == problem["code"] == 64
    assert set(problem) == {"subject", "found", "remedy", "code"}


def test_the_readable_plan_names_every_setting_and_source(workspace):
    done = launch("--dry-run", "lr=1e-4", **workspace, bogus="")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert lines["lr"].split() == ["lr", "0.0001", "command", "line:", "--lr"]
    assert set(plan.settings.shown_names(plan.RunSpec).values()) <= lines.keys()
    assert "1 per device × 1 accumulated × 1 process = 1 image per step" in done.stdout


# --- a fake worker shows what arrives ----------------------------------------------------------------

AWKWARD = 'it\'s a "sks" dog\n$(touch pwned) `touch pwned` ${HOME} ; touch pwned & \\ %s ünï'


def test_an_awkward_prompt_arrives_literally_when_the_plan_is_pasted(workspace, tmp_path):
    """The printed command, run by a shell, gives the worker the very words of the plan."""
    code, printed = plan_json(f"--instance_prompt={AWKWARD}", **workspace)
    assert code == 0
    job = prepare(workspace, ("instance_prompt", AWKWARD))
    echo = tmp_path / "echo.py"
    echo.write_text("import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['SDJOB_STOP_FILE']]))")
    # What follows the interpreter is the same; torchrun itself is left out.
    pasted = job.launch.shell().replace("-m torch.distributed.run", shlex.quote(str(echo)))
    done = subprocess.run(
        ["bash", "-c", pasted],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    words, stop_file = json.loads(done.stdout)
    assert words == list(job.launch.argv[3:]) == printed["argv"][3:]
    doubled = AWKWARD.replace("$", "$$")  # torchrun halves them
    assert f"--instance_prompt={doubled}" in words
    assert stop_file == str(tmp_path / "output" / "run" / "stop-0")
    assert not list(tmp_path.rglob("pwned"))


# --- problems ----------------------------------------------------------------------------------------


def test_five_mistakes_at_once(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "output").write_text("a file")
    done = launch(
        "check",
        "--json",
        MODEL_DIR=str(tmp_path / "model"),
        DATASET_DIR=str(tmp_path / "none"),
        OUTPUT_DIR=str(tmp_path / "output"),
        bacth_size="2",
        lr="-1",
        plugin="gemini",
        device="cpu",
    )
    problems = json.loads(done.stdout)["problems"]
    assert [(problem["code"], problem["subject"]) for problem in problems] == [
        (64, "bacth_size"),
        (64, "lr"),
        (66, "DATASET_DIR"),
        (66, "MODEL_DIR"),
        (69, "plugin"),
        (73, "OUTPUT_DIR"),
    ]
    assert done.returncode == 64
    assert (tmp_path / "output").read_text() == "a file"


def test_a_run_with_problems_says_the_same_on_stderr_and_starts_nothing(workspace, tmp_path):
    done = launch(**workspace, lr="-1")
    assert done.returncode == 64
    assert done.stdout == ""
    assert "lr: found '-1' (environment: lr)" in done.stderr
    assert "Traceback" not in done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first == "check  settings, model, dataset, output folder"
    kept = f"no checkpoint is in {tmp_path}/output/checkpoint"
    assert last == f"not started: {kept}; open {tmp_path}/output/report.html"
    left = {path.name for path in (tmp_path / "output").rglob("*") if path.is_file()}
    assert left == {"failure.json", "failure-0.json", "report.html", "report_data.js"}


@pytest.mark.parametrize("mount", ["MODEL_DIR", "DATASET_DIR", "PROJECT_DIR"])
@pytest.mark.parametrize(
    ("kind", "words"), [("missing", "does not exist"), ("file", "is a file"), ("empty", "is empty")]
)
def test_a_mount_that_is_wrong_is_named_by_its_variable(workspace, tmp_path, mount, kind, words):
    path = tmp_path / kind
    if kind == "file":
        path.touch()
    elif kind == "empty":
        path.mkdir()
    (problem,) = prepare(workspace, **{mount: str(path)}).problems
    assert (problem.code, problem.subject) == (66, mount)
    assert words in problem.found
    assert f"set {mount}" in problem.remedy


def test_the_plan_shows_what_it_can_with_a_mount_missing(workspace):
    code, printed = plan_json(**{**workspace, "MODEL_DIR": "/nonexistent"})
    assert code == 66
    assert "--pretrained_model_name_or_path=/nonexistent" in printed["argv"]
    assert printed["mounts"]["DATASET_DIR"]["found"].startswith("5 images")


def test_a_plan_with_a_refused_setting_has_no_command_but_shows_the_value(workspace):
    code, printed = plan_json(**workspace, lr="fast")
    assert (code, printed["argv"]) == (64, [])
    assert printed["settings"]["lr"]["value"] == "fast"


def test_an_absolute_name_needs_no_mount(workspace, tmp_path):
    job = prepare(workspace, MODEL_DIR="/nonexistent", model_name=str(tmp_path / "model" / "tiny"))
    assert job.problems == ()


def test_captions_are_required_by_the_recipe(workspace, tmp_path):
    assert {code for _, code in found(prepare(workspace, recipe="text_to_image"))} == {66}


@pytest.mark.parametrize("image", ["4.png", "2.png", "0.png"])
def test_a_corrupt_image_is_named(workspace, tmp_path, image):
    (tmp_path / "dataset" / "images" / image).write_bytes(b"\x89PNG not really")
    (problem,) = prepare(workspace).problems
    assert problem.code == 66
    assert image in problem.subject
    assert prepare(workspace, verify_images="none").problems == ()


def test_too_many_processes_for_the_devices(workspace, monkeypatch):
    two = plan.devices.Devices("cuda", 2, 8, "auto", bf16=True)
    monkeypatch.setattr(plan.devices, "find", lambda *_: two)
    job = prepare(workspace, NPROC_PER_NODE="4")
    assert found(job) == [("NPROC_PER_NODE", 69)]
    assert "2 cuda devices" in job.problems[0].found
    assert found(prepare(workspace, NPROC_PER_NODE="2")) == []
    assert prepare(workspace).settings["mixed_precision"].value == "bf16"


def test_problems_of_the_cluster_are_settings(workspace):
    assert found(prepare(workspace, NNODES="2", NODE_RANK="5", MASTER_ADDR="a")) == [("NODE_RANK", 64)]


@pytest.mark.parametrize(
    ("resume", "code"),
    [("auto", None), ("never", None), ("must", 64), ("/nonexistent/checkpoint-000500", 64)],
)
def test_a_checkpoint_to_resume_must_exist(workspace, resume, code):
    assert found(prepare(workspace, resume=resume)) == ([("resume", code)] if code else [])


def test_class_images_that_the_user_names_must_be_there(workspace):
    prior = {"with_prior_preservation": "1", "class_prompt": "a dog"}
    assert found(prepare(workspace, **prior)) == []
    assert found(prepare(workspace, **prior, class_data_dir="/nonexistent")) == [("class_data_dir", 66)]


def test_bytes_that_are_not_text_are_refused_in_a_prompt(workspace):
    done = launch("check", **workspace, instance_prompt=b"\xff".decode("utf-8", "surrogateescape"))
    assert done.returncode == 64
    assert "instance_prompt" in done.stdout


# --- arithmetic --------------------------------------------------------------------------------------


def test_epochs_alone_become_steps(workspace):
    job = prepare(workspace, epoch="3", batch_size="2", NPROC_PER_NODE="2")  # 3 × 5 images / 4
    assert job.settings["num_train_step"].value == 4
    assert "epoch=3" in job.settings["num_train_step"].source


def test_epochs_of_several_subjects_become_steps(workspace, tmp_path):
    other = shutil.copytree(tmp_path / "dataset/images", tmp_path / "other")
    (other / "0.png").unlink()
    entries = [
        {"instance_data_dir": str(folder), "instance_prompt": "x"}
        for folder in (tmp_path / "dataset/images", other)
    ]
    (tmp_path / "subjects.json").write_text(json.dumps(entries))
    job = prepare(workspace, epoch="2", NPROC_PER_NODE="2", concepts_list=str(tmp_path / "subjects.json"))
    assert job.settings["num_train_step"].value == 9  # 2 × (5 + 4) images / 2
    assert any(line.startswith("length: 9 images / 2") for line in job.arithmetic)


def test_the_steps_of_epochs_are_the_workers_to_compute(workspace):
    """Of a run that goes on with another batch they are others."""
    assert job_flags(prepare(workspace, epoch="3")) == {"--num_train_epochs=3"}
    assert job_flags(prepare(workspace, epoch="3", num_train_step="7")) >= {"--max_train_steps=7"}
    assert job_flags(prepare(workspace)) == {"--max_train_steps=400"}


def job_flags(job):
    return {flag for flag in job.launch.argv if flag.startswith(("--max_train_steps", "--num_train_epochs"))}


def test_steps_win_over_epochs(workspace):
    job = prepare(workspace, epoch="3", num_train_step="7")
    assert job.settings["num_train_step"].value == 7


# --- output ------------------------------------------------------------------------------------------


def as_user(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python script with the launcher at hand, without root's privileges."""
    lines = f"import os, sys\nsys.path[:0] = [{str(HOME)!r}, {str(HOME / 'project')!r}]\n"
    # Import before the privileges go: the checkout may be private to root.
    lines += (
        "import concurrent.futures.thread, entrypoint, sdlaunch.cli, sdlaunch.plan, sdlaunch.display.text\n"
    )
    lines += "import sdlaunch.supervise.failure_report, PIL.Image, PIL.PngImagePlugin\n"
    lines += "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    return subprocess.run(
        [sys.executable, "-c", lines + script],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        cwd="/",
    )


@pytest.fixture
def open_place():
    """A place that other users can reach; pytest closes its own folders to them whenever it starts."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield make_workspace(Path(folder))


CHECK = "sys.exit(entrypoint.main(['plan', '--json'], os.environ))"


@pytest.mark.parametrize(
    ("mount", "mode", "code"),
    [
        ("MODEL_DIR", 0o000, 66),
        ("DATASET_DIR", 0o000, 66),
        ("MODEL_DIR", 0o444, 66),
        ("OUTPUT_DIR", 0o555, 73),
    ],
)
def test_without_permission(open_place, mount, mode, code):
    folder = Path(open_place[mount])
    Path(open_place["OUTPUT_DIR"]).mkdir(mode=0o777)
    Path(open_place["OUTPUT_DIR"]).chmod(0o777)
    assert as_user(CHECK, **open_place).returncode == 0
    folder.chmod(mode)
    done = as_user(CHECK, **open_place)
    folder.chmod(0o755)
    assert "Traceback" not in done.stderr, done.stderr
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == 1, problems
    assert (done.returncode, problems[0]["code"], problems[0]["subject"]) == (code, code, mount)
    assert "by user" in problems[0]["found"]


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_an_output_folder_that_is_a_file_or_lies_below_one(workspace, tmp_path, below):
    (tmp_path / "file").write_text("kept")
    (problem,) = prepare(workspace, OUTPUT_DIR=str(tmp_path / "file" / below)).problems
    assert (problem.code, problem.subject) == (73, "OUTPUT_DIR")
    assert "file" in problem.found
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("below", ["model", "model/out", "dataset/images", "link/out"])
def test_an_output_folder_among_the_inputs_is_refused(workspace, tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "dataset")
    (problem,) = prepare(workspace, OUTPUT_DIR=str(tmp_path / below)).problems
    assert (problem.subject, problem.code) == ("OUTPUT_DIR", 64)
    assert ("MODEL_DIR" if below.startswith("model") else "DATASET_DIR") in problem.found


def test_an_output_folder_above_the_inputs_is_allowed(workspace, tmp_path):
    assert found(prepare(workspace, OUTPUT_DIR=str(tmp_path))) == []


def test_the_table_of_mounts_shows_what_was_found(workspace, tmp_path, monkeypatch):
    mounts = prepare(workspace, PROJECT_DIR=str(HOME)).mounts
    assert mounts["PROJECT_DIR"]["found"] == "can be written, never is"
    assert mounts["OUTPUT_DIR"]["found"] == "can be written"
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "below")
    mounts = prepare(workspace, PROJECT_DIR=below, OUTPUT_DIR=below).mounts
    assert (mounts["PROJECT_DIR"]["found"], mounts["OUTPUT_DIR"]["found"]) == ("not usable", "not usable")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert prepare(workspace).mounts["PROJECT_DIR"]["found"] == "read only"


def test_what_is_in_the_output_folder_stays(workspace, tmp_path):
    (tmp_path / "output" / "checkpoint").mkdir(parents=True)
    (tmp_path / "output" / "checkpoint" / "mine.txt").write_text("mine")
    before = sorted(path.name for path in (tmp_path / "output").rglob("*"))
    assert prepare(workspace).problems == ()
    assert sorted(path.name for path in (tmp_path / "output").rglob("*")) == before


def test_too_little_space_is_refused_with_the_arithmetic(workspace, monkeypatch):
    usage, shm = type("Usage", (), {"free": 100}), type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if "shm" not in str(path) else shm)
    (problem,) = prepare(workspace, num_train_step="1000").problems
    assert problem.code == 73
    assert "100 B free" in problem.found
    assert (
        "2 checkpoints of 161 kB" in problem.found
    )  # 13,444 parameters × 4 bytes × (weights + optimizer state)


def test_a_fraction_that_is_held_out_counts_in_the_arithmetic(workspace, tmp_path):
    job = prepare(workspace, validation_split="0.4", epoch="3", max_validation_samples="1")
    assert job.problems == ()
    assert job.arithmetic[1] == "validation: 2 of 5 images held out, 1 of them used"
    assert job.arithmetic[2].startswith("length: 3 images / 1 = 3 steps per epoch; 9 steps = 3 epochs")
    for number in range(1, 5):
        (tmp_path / f"dataset/images/{number}.png").unlink()
    assert found(prepare(workspace, validation_split="0.4")) == [(f"{tmp_path}/dataset/images", 66)]


def test_secrets_are_not_in_the_plan(workspace, tmp_path):
    env = tmp_path / "job.env"
    env.write_text("HF_TOKEN=hf_abcdefgh123\nMY_URL=https://me:pa55word@host/x\n")
    for verb in (["plan", "--json"], ["plan"]):
        done = launch(*verb, **workspace, ENV_FILE=str(env))
        assert done.returncode == 0
        assert "MY_URL" in done.stdout
        assert "hf_abcdefgh123" not in done.stdout + done.stderr
        assert "pa55word" not in done.stdout + done.stderr
