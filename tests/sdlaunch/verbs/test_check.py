"""`check` compares tensors with configs in a subprocess, and says so where it cannot."""

import pytest

from sdjob.problems import no_hardware
from sdlaunch import packages
from sdlaunch.verbs import check
from tests.sdlaunch.workspace import clean_environment, launch
from tests.support.launcher import prepare
from tests.support.pipeline import FILES, zeros

ANSWER = check._answer  # before conftest.py replaces it


@pytest.fixture(autouse=True)
def comparison(no_comparison, monkeypatch):
    monkeypatch.setattr(check, "_answer", ANSWER)


def test_weights_of_another_architecture(workspace, tmp_path):
    """Found by `check` alone: a plan leaves it to `check` and the job, and says so."""
    file = tmp_path / "model/tiny/unet" / FILES["unet"]
    file.write_bytes(zeros({"blocks.0.qkv": (4, 4)}))
    job = prepare(workspace)
    assert job.problems == ()
    assert any("tensors are compared with configs" in line for line in job.arithmetic)
    done = launch("check", **workspace)
    assert done.returncode == 66
    assert "holds 1 that unet/config.json does not ask for, such as blocks.0.qkv" in done.stdout


@pytest.mark.parametrize(
    ("code", "seconds", "reason"),
    [
        ("import time; time.sleep(60)", 0.2, "no answer within check_timeout=0.2 s"),
        ("raise SystemExit('no kernel')", 60, "no kernel"),
        ("print('no JSON')", 60, "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_without_an_answer_there_is_a_warning(monkeypatch, code, seconds, reason):
    monkeypatch.setattr(packages, "broken", lambda *_: [])
    problems, warnings = check._answer(["-c", code], clean_environment(), seconds)
    assert problems == ()
    assert warnings == (f"MODEL_DIR: tensors are not compared with the configs ({reason}); the job does so",)


def test_a_broken_package_is_a_problem(monkeypatch):
    problem = no_hardware(
        "Python packages", "torch is installed, but cannot be imported (x)", "Install it again."
    )
    monkeypatch.setattr(packages, "broken", lambda *_: [problem])
    assert check._answer(["-c", "raise OSError"], clean_environment(), 60) == ((problem,), ())


@pytest.mark.parametrize("variables", [{"lr": "x"}, {"script": "train.py"}])
def test_nothing_is_started_where_it_would_not_help(workspace, monkeypatch, variables):
    monkeypatch.setattr(check, "_answer", lambda *_: pytest.fail("started"))
    job = prepare({**workspace, "PROJECT_DIR": workspace["MODEL_DIR"]}, **variables)
    assert check.with_tensors(job, {}) is job
