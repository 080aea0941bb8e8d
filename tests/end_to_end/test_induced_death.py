"""A sample of what can end a job, in the phases where it hurts; the long form tries everything.

Tests of the table of outcomes too, and of what makes a cell wrong.
"""

import dataclasses
import importlib
import os
import shutil
import subprocess
import sys

import pytest

from tests.end_to_end import induced_death
from tests.end_to_end.induced_death import (
    LAUNCHER,
    PHASES,
    TORCHRUN,
    Outcome,
    Phase,
    die,
    make_inputs,
    undisturbed,
)
from tests.support.volume import CALLS, FAULTS
from tests.support.worker import PROJECT

SAMPLE = (
    ("start of the ranks", "SIGTERM to rank"),
    ("class images", f"SIGKILL to {LAUNCHER}"),
    ("last checkpoint", f"SIGKILL to {TORCHRUN}"),
    ("export, put in place", "SIGKILL to rank"),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("death") / "inputs")


@pytest.fixture(scope="module")
def wanted(inputs, tmp_path_factory):
    return undisturbed(inputs, tmp_path_factory.mktemp("undisturbed"))


def assert_survived(inputs, tmp_path, wanted, phase: Phase, cause: str):
    try:
        outcome = die(inputs, tmp_path / cause, phase, cause, wanted)
    except OSError as error:
        if cause in FAULTS and "mount" in str(error):
            pytest.skip(f"nothing can be mounted: {error}")
        raise
    assert outcome.faults(cause, phase) == []


@pytest.mark.parametrize(("name", "cause"), SAMPLE)
def test_a_job_that_is_ended_gives_the_undisturbed_result_in_the_end(inputs, tmp_path, wanted, name, cause):
    assert_survived(inputs, tmp_path, wanted, next(phase for phase in PHASES if phase.name == name), cause)


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_everything_that_can_end_a_job(inputs, tmp_path, wanted, phase):
    for cause in set(phase.causes()) - set(CALLS):  # these need a program that begins with them
        assert_survived(inputs, tmp_path, wanted, phase, cause)


def test_the_function_of_every_phase_is_there():
    for phase in PHASES:
        module, _, name = phase.place.function.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), phase.name


GOOD = Outcome(75, "", 1.25, 0, 0, "resuming from /output/checkpoint/checkpoint-000002", True)
TRAINING = next(phase for phase in PHASES if phase.name == "training")


@pytest.mark.parametrize(
    ("cause", "changes", "faults"),
    [
        ("SIGTERM to rank", {}, []),
        ("SIGTERM to rank", {"code": 0}, ["exit code 0, no failure"]),
        ("SIGTERM to rank", {"code": 0, "begins": "already finished: 4 steps"}, []),
        (
            "SIGTERM to rank",
            {"code": 70, "failure": "killed from outside"},
            ["exit code 70, killed from outside"],
        ),
        ("SIGKILL to rank", {"code": 70, "failure": "killed from outside"}, []),
        ("SIGKILL to rank", {"code": 70, "failure": "training failed"}, ["exit code 70, training failed"]),
        (f"SIGKILL to {LAUNCHER}", {"code": -9}, []),
        (f"SIGKILL to {LAUNCHER}", {}, ["exit code 75, no failure"]),
        ("EIO", {"code": 73, "failure": "output cannot hold the result"}, []),
        ("quota", {"code": 73, "failure": "output cannot hold the result"}, []),
        ("ESTALE", {}, ["exit code 75, no failure"]),
        ("EIO", {"code": 70, "failure": "training failed"}, ["exit code 70, training failed"]),
        ("SIGINT to rank", {"seconds": 31.0}, ["alive for 31 s"]),
        ("SIGINT to rank", {"unseen": 3}, ["3 steps unseen"]),
        ("SIGINT to rank", {"same": False}, ["another result"]),
        ("SIGINT to rank", {"again": 66, "same": False, "begins": "no"}, ["next start: 66, no"]),
    ],
)
def test_what_is_wrong_with_an_outcome(cause, changes, faults):
    assert dataclasses.replace(GOOD, **changes).faults(cause, TRAINING) == faults


def test_calls_below_a_folder_fail_and_pass_again(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from tests.support import volume; root = Path(sys.argv[1])\n"
        "volume.preload(root)\n"
        "(root / 'out').mkdir(); file = (root / 'out/a').open('ab', buffering=0)\n"
        "os.environ.pop('LD_PRELOAD'); volume.fail_calls(122, root / 'out')\n"
        "for call in (lambda: file.write(b'x'), lambda: (root / 'out/b').mkdir(), lambda: (root / 'out/c').touch(),\n"
        "             lambda: os.fsync(file), lambda: os.rename(root / 'd', root / 'out/d')):\n"
        "    try: call()\n"
        "    except OSError as error: print(error.errno)\n"
        "(root / 'd').write_text('x'); (root / 'out/a').read_bytes()\n"
        "volume.pass_calls(); file.write(b'x'); print('end')\n"
    )
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{PROJECT}:{PROJECT.parent}"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    done = subprocess.run(command, env=path, capture_output=True, text=True)
    assert done.stdout.split() == ["122"] * 5 + ["end"], done.stderr


def test_the_table():
    wrong = dataclasses.replace(GOOD, unseen=3)
    page = induced_death.table({("training", "SIGTERM to rank"): GOOD, ("training", "EIO"): wrong})
    assert (
        "\n| phase | SIGTERM | SIGUSR1 | SIGINT | SIGKILL |\n|---|---|---|---|---|\n| training | 75, 1.2 s, step 2 |"
        in page
    )
    assert "| **75, 1.2 s, step 2: exit code 75, no failure; 3 steps unseen** |" in page
    assert "2 of 379 cells were measured, 1 are as they should be" in page
