"""Supervises a script in the place of torchrun: `driver.py SCRIPT`. The rest is as in a real start."""

import dataclasses
import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "project"))

from sdlaunch import plan, supervise  # noqa: E402

if __name__ == "__main__":
    job = plan.prepare((), os.environ, HOME)
    assert not job.problems and job.launch, job.problems
    launch = dataclasses.replace(job.launch, argv=(sys.executable, sys.argv[1], *job.launch.argv[3:]))
    sys.exit(supervise.run(dataclasses.replace(job, launch=launch), os.environ))
