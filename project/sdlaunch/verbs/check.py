"""What `check` does beyond the checks of every plan: compare the model's tensors with its configs.

In a subprocess, since only diffusers and transformers know the layouts; a job does the same before it trains.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from dataclasses import replace

from sdjob.problems import Problem
from sdlaunch import packages
from sdlaunch.plan import JobPlan
from sdlaunch.timeouts import NoAnswer, ask

MODULE = "sdtrain.model.check_tensors"
_MEMORY = 2 << 30  # bytes; the libraries alone take a sixth


def with_tensors(job: JobPlan, environ: Mapping[str, str]) -> JobPlan:
    """The plan with what this finds; unchanged where something else is wrong, or a script loads the model."""
    values = {name: each.value for name, each in job.settings.items()}
    if job.problems or job.awaited or job.launch is None or values["script"]:
        return job
    argv = [word.replace("$$", "$") for word in job.launch.argv]  # as torchrun hands them on
    arguments = ["-m", MODULE, *argv[argv.index("sdtrain") + 1 :]]
    problems, warnings = _answer(arguments, job.launch.environment(environ), values["check_timeout"])
    return replace(job, problems=problems, warnings=(*job.warnings, *warnings))


def _answer(
    arguments: list[str], environ: Mapping[str, str], seconds: float
) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """Problems and warnings; a warning alone where there is no answer in time."""
    try:
        if importlib.util.find_spec("torch") is None:
            raise NoAnswer("torch is not installed")
        alone = {**environ, "OMP_NUM_THREADS": "1"}  # each thread reserves memory
        found = ask(arguments, alone, seconds, "check_timeout", _MEMORY)
    except NoAnswer as error:
        with contextlib.suppress(NoAnswer):
            if found := packages.broken(environ, seconds):
                return tuple(found), ()
        return (), (f"MODEL_DIR: tensors are not compared with the configs ({error}); the job does so",)
    return tuple(Problem(**problem) for problem in found["problems"]), tuple(found["warnings"])
