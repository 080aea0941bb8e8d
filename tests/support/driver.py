"""Supervise without the real worker: `driver.py SCRIPT.py` replaces torchrun, `driver.py MODULE` the worker."""

import dataclasses
import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "project"))

from sdjob import protocol  # noqa: E402
from sdlaunch import plan  # noqa: E402
from sdlaunch.supervise import lock, supervisor  # noqa: E402

if __name__ == "__main__":
    what = sys.argv[1]
    protocol.ONE_REQUEST = float(os.environ.get("ONE_REQUEST", protocol.ONE_REQUEST))
    lock.BEAT = float(os.environ.get("BEAT", lock.BEAT))
    in_place = what.endswith(".py")
    job = plan.prepare((), os.environ, HOME)
    assert not job.problems and job.launch, job.problems
    if in_place:
        argv = (sys.executable, what, *job.launch.argv[3:])
    else:
        argv = tuple(what if word == "sdtrain" else word for word in job.launch.argv)
    job = dataclasses.replace(job, launch=dataclasses.replace(job.launch, argv=argv))
    code = supervisor.run(job, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as entrypoint.py ends
