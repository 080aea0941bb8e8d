"""What `check` does beyond the checks of every plan: compare the model's tensors with its configs.

In a subprocess, since only diffusers and transformers know the layouts; a job does the same before it trains.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

from sdjob.problems import Problem
from sdlaunch.plan import JobPlan

MODULE = "sdtrain.model.check_tensors"


def with_tensors(job: JobPlan, environ: Mapping[str, str]) -> JobPlan:
    """The plan with what this finds; as it is where other things are wrong, or where a script loads the model."""
    values = {name: each.value for name, each in job.settings.items()}
    if job.problems or job.awaited or job.launch is None or values["script"]:
        return job
    settings = [
        f"--{name}={values[name]}" for name in ("prediction_type", "single_file_config") if values[name]
    ]
    settings += ["--allow_pickle"] if values["allow_pickle"] else []
    command = [sys.executable, "-m", MODULE, job.mounts["MODEL_DIR"]["uses"], *settings]
    problems, warnings = _answer(command, job.launch.environment(environ), values["check_timeout"])
    return replace(job, problems=problems, warnings=(*job.warnings, *warnings))


def _answer(
    command: list[str], environ: Mapping[str, str], seconds: float
) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """Problems and warnings; a warning alone where there is no answer in time."""
    try:
        if importlib.util.find_spec("torch") is None:
            raise ValueError("torch is not installed")
        done = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=True,
        )
        found = json.loads(done.stdout.rstrip().rpartition("\n")[2])  # behind what libraries print
    except (subprocess.SubprocessError, ValueError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        if isinstance(error, subprocess.TimeoutExpired):
            reason = f"no answer within check_timeout={seconds:g} s"
        return (), (f"MODEL_DIR: tensors are not compared with the configs ({reason}); the job does so",)
    return tuple(Problem(**problem) for problem in found["problems"]), tuple(found["warnings"])
