"""Run the launcher from a test: as users do, or with a script instead of torchrun or the worker."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sdjob import protocol
from sdlaunch import plan
from tests.sdlaunch.workspace import HOME, clean_environment

ENTRYPOINT = (sys.executable, str(HOME / "entrypoint.py"))
DRIVER = (sys.executable, str(Path(__file__).with_name("driver.py")))

# Start of a script that replaces torchrun.
PRELUDE = """
import json, os, signal, subprocess, sys, time
from sdjob import protocol, rank_output
rank_output.attach()  # as a worker of torchrun
stop_file, notes = (os.fspath(find(os.environ)) for find in (protocol.stop_file, protocol.notes_folder))
def note(rank, code, **more):
    text = json.dumps({"rank": rank, "code": code, "step": 7, "time": time.time(), "problems": [], **more})
    open(f"{notes}/rank-{rank}.json", "w").write(text)
def beat(rank, **more):
    protocol.Heartbeat(os.getpid(), "step", **more).write(protocol.notes_folder(os.environ), rank)
def say(text):
    if not text.startswith("[rank "):
        print(text, flush=True)
        return
    rank, said = int(text[6 : text.index("]")]), text.partition("] ")[2]
    with open(protocol.own_pipe({**os.environ, "LOCAL_RANK": "0"}), "wb", buffering=0) as pipe:
        pipe.write(protocol.introduction(rank, 0) + said.encode() + bytes([10]))
def asked(seconds=20):
    end = time.time() + seconds
    while not os.path.exists(stop_file) and time.time() < end:
        time.sleep(0.01)
    return os.path.exists(stop_file)
"""


class Launched:
    """A running launcher, read line by line."""

    def __init__(self, argv: tuple[str, ...], output: Path, environ: dict[str, str], **options: Any) -> None:
        self.output = output
        self.process = subprocess.Popen(
            argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )

    def until(self, word: str) -> str:
        """Read the terminal up to a line with this text; returns the line."""
        assert self.process.stdout
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if word in line:
                return line
        raise AssertionError(f"{word!r} never came:\n{''.join(seen)}")

    def end(self, code: int) -> str:
        """Wait for the end with this exit code; returns the rest of the terminal."""
        text, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == code, text
        assert "Traceback" not in text
        return text

    def end_at_once(self) -> None:
        """Stop it at once if it is still running; its processes end too."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                time.sleep(protocol.ONE_REQUEST + 0.5)

    def signal_rank(self, rank: int, signum: int) -> None:
        beat = protocol.Heartbeat.read(protocol.Channel.of_node(self.output / "run", 0).notes, rank)
        assert beat
        os.kill(beat.pid, signum)

    @property
    def failure(self) -> dict[str, Any]:
        return json.loads((self.output / "failure.json").read_text())

    @property
    def log(self) -> str:
        return (self.output / "logs" / "node-0.log").read_text()

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.output / "checkpoint").iterdir())


def supervised(
    folder: Path, workspace: dict[str, str], script: str, *, as_worker: bool = False, **variables: str
) -> Launched:
    """Run the launcher with a script instead of torchrun or as the worker; the output is below the folder."""
    path = folder / "fake.py"
    path.write_text(PRELUDE + script)
    if as_worker:
        variables["PYTHONPATH"] = str(folder)
    environ = clean_environment(**{**workspace, **variables})
    return Launched((*DRIVER, "fake" if as_worker else str(path)), folder / "output", environ)


def prepare(workspace: dict[str, str], **variables: str) -> plan.JobPlan:
    """Plan a job with these variables."""
    return plan.prepare((), clean_environment(**{**workspace, **variables}), HOME)


def found(job: plan.JobPlan) -> list[tuple[str, int]]:
    """Subject and code of each problem."""
    return [(problem.subject, problem.code) for problem in job.problems]


def pasted(job: plan.JobPlan, folder: Path) -> str:
    """Run the plan's command in a shell in this folder; returns its output. It must succeed."""
    assert job.launch, job.problems
    done = subprocess.run(
        ["bash", "-c", job.launch.shell()],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
