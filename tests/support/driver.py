"""Supervise without the real worker: `driver.py SCRIPT.py` replaces torchrun, `driver.py MODULE` the worker."""

import dataclasses
import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "project"))

from sdjob import protocol  # noqa: E402
from sdlaunch import plan  # noqa: E402
from sdlaunch.supervise import supervisor  # noqa: E402

if __name__ == "__main__":
    what = sys.argv[1]
    protocol.ONE_REQUEST = float(os.environ.get("ONE_REQUEST", protocol.ONE_REQUEST))
    in_place = what.endswith(".py")
    job = plan.prepare((), os.environ, HOME, worker="sdtrain" if in_place else what)
    assert not job.problems and job.launch, job.problems
    if in_place:
        launch = dataclasses.replace(job.launch, argv=(sys.executable, what, *job.launch.argv[3:]))
        job = dataclasses.replace(job, launch=launch)
    code = supervisor.run(job, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as entrypoint.py ends
