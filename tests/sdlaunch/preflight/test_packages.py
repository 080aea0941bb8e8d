"""Tests of the check of Python packages."""

from dataclasses import replace

import pytest

from sdjob.dataset.formats.folder import FOLDER
from sdjob.dataset.formats.parquet import PARQUET
from sdjob.dataset.formats.saved import SAVED
from sdlaunch import packages, plan
from tests.sdlaunch.test_plan import found, prepare


@pytest.mark.parametrize(("optimizer", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_the_package_of_an_optimizer_is_required_before_the_job_starts(
    workspace, monkeypatch, optimizer, package
):
    there = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: there("json" if name == package else name))
    assert prepare(workspace, optimizer=optimizer).problems == ()
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else there(name))
    (problem,) = prepare(workspace, optimizer=optimizer).problems
    assert (problem.subject, problem.code) == ("optimizer", 69)
    assert f"pip install {package}" in problem.remedy


@pytest.mark.parametrize("name", ["wandb", "mlflow", "swanlab"])
def test_the_package_of_a_tracker_is_required_before_the_job_starts(workspace, monkeypatch, name):
    there = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda wanted: None if wanted == name else there(wanted))
    assert prepare(workspace, report_to="all").problems == ()
    (problem,) = prepare(workspace, report_to=f"tensorboard,{name}").problems
    assert (problem.subject, problem.code, problem.found) == ("report_to", 69, f"{name} not installed")
    assert f"pip install {name};" in problem.remedy
    assert prepare(workspace, report_to=name, install_requirements="1").problems == ()
    monkeypatch.setattr(packages, "find_spec", lambda wanted: there("json" if wanted == name else wanted))
    job = prepare(workspace, report_to=name)
    assert job.problems == () and f"--report_to={name}" in job.launch.argv


def test_missing_packages_are_a_problem_with_the_command_that_installs_them(workspace, monkeypatch):
    monkeypatch.setitem(packages.PACKAGES, "no_such_module", "no-such-package")
    (problem,) = prepare(workspace).problems
    assert problem.code == 69
    assert "pip install no-such-package" in problem.remedy


def without(monkeypatch, package):
    here = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else here(name))


def test_every_run_needs_peft(workspace, monkeypatch):
    without(monkeypatch, "peft")
    assert found(prepare(workspace)) == [("Python packages", 69)]


@pytest.mark.parametrize(("data_format", "code"), [(FOLDER, 0), (PARQUET, 69), (SAVED, 69)])
def test_only_tables_need_pyarrow(workspace, monkeypatch, data_format, code):
    without(monkeypatch, "pyarrow")
    look = plan.inputs.look

    def looked(*given):
        contents = look(*given)
        return replace(contents, dataset=replace(contents.dataset, format=data_format))

    monkeypatch.setattr(plan.inputs, "look", looked)
    problems = prepare(workspace, verify_images="none").problems
    assert [(problem.subject, problem.code) for problem in problems] == (
        [("Python packages", code)] if code else []
    )
