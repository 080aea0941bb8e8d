"""Variables of Python that the processes of a job do not get."""

import os

import pytest

from sdlaunch.python_variables import harmful, without_harmful
from sdlaunch.timeouts import ask
from tests.support.launcher import prepare

BAD = {"PYTHONIOENCODING": "ascii", "PYTHONOPTIMIZE": "2", "PYTHONINSPECT": "1", "PYTHONWARNINGS": "error"}


def test_the_command_unsets_them_and_the_plan_says_why(workspace):
    job = prepare(workspace, **BAD)
    assert job.problems == ()
    assert job.launch.unset == tuple(sorted(BAD))
    assert job.launch.environment(BAD).keys().isdisjoint(BAD)
    assert [text for text in job.warnings if "PYTHON" in text] == [
        "PYTHONOPTIMIZE=2 is not passed on to the processes: libraries need their docstrings and assertions",
        "PYTHONINSPECT=1 is not passed on to the processes: a process could not end",
        "PYTHONWARNINGS=error is not passed on to the processes: "
        "libraries warn of their own old code, and would end with it",
    ]


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("ignore", False),
        ("default::UserWarning", False),
        ("error", True),
        ("ignore,error::DeprecationWarning", True),
    ],
)
def test_warnings_are_left_to_the_user_unless_they_are_errors(text, dropped):
    assert bool(harmful({"PYTHONWARNINGS": text})) == dropped


def test_others_are_passed_on():
    kept = {"PYTHONPATH": "/p", "PYTHONUNBUFFERED": "1", "PYTHONOPTIMIZE": "", "PYTHONNOUSERSITE": "1"}
    assert without_harmful({**kept, **BAD, "PYTHONOPTIMIZE": ""}) == kept


def test_a_process_that_is_asked_does_not_get_them():
    question = (
        "import json, os, sys; print(json.dumps([sys.flags.optimize, os.environ.get('PYTHONIOENCODING')]))"
    )
    assert ask(["-c", question], {**os.environ, **BAD}, 60) == [0, None]
