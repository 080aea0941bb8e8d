"""Publishing from the launcher's side: the check before a run, and the upload after it or on request.

The result stays where it is, whatever becomes of an upload: its failure ends in 75 where another attempt may succeed
(the next start of the job finds the run finished, and uploads again), and in 73 where it was refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sdjob import protocol
from sdjob.exit_codes import ExitCode
from sdjob.files import shown
from sdjob.output.layout import OutputLayout, is_exported
from sdjob.problems import JobError, Problem, bad_input, bad_setting
from sdjob.redact import redact, secrets_of
from sdlaunch import child_process, packages
from sdlaunch.display import console
from sdlaunch.inputs import mounts
from sdlaunch.preflight.job import Finding
from sdlaunch.publish.address import Address, parse
from sdlaunch.settings import settings
from sdlaunch.timeouts import NoAnswer, ask

_MODULE = "sdlaunch.publish.upload"
_PATIENCE = 20.0  # seconds for the check of access
_CREDENTIALS = (
    "Set the variables of its credentials, such as HF_TOKEN or AWS_ACCESS_KEY_ID, or another address."
)


def findings(text: str, environ: Mapping[str, str], *, has_script: bool) -> Sequence[Finding]:
    """What is wrong with the place to publish to, as far as it is known before the run."""
    try:
        address = parse(text)
    except JobError as error:
        return error.problems
    if has_script:
        remedy = "Leave it out: only the script knows what its result is."
        return [bad_setting("publish", f"{text}, with script", remedy)]
    if problem := _lacking(address):
        return [problem]
    try:
        found = ask(["-m", _MODULE, "check", address.text], _environment(environ), _PATIENCE)
    except NoAnswer as error:
        found = {"warning": str(error)}
    secrets = secrets_of(environ)
    if problem := found.get("problem"):
        return [bad_setting("publish", redact(f"{address.text}: {problem}", secrets), _CREDENTIALS)]
    if warning := found.get("warning"):
        return [redact(f"publish: {address.text} cannot be asked for access now ({warning})", secrets)]
    return []


def _lacking(address: Address) -> Problem | None:
    module, package = address.package
    lacking = [package] if importlib.util.find_spec(module) is None else []
    return packages.not_installed(lacking, otherwise="; or publish elsewhere.") if lacking else None


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """That of a process that reaches out: to publish is to allow it, also where the training is offline."""
    project = Path(__file__).resolve().parents[2]
    path = child_process.python_path(project, environ.get("PYTHONPATH"))
    return {**environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class Upload:
    """What is published, and where to."""

    folder: Path
    address: Address

    @property
    def again(self) -> str:
        """The command that repeats it."""
        words = ["bash", "train.sh", "publish", f"to={self.address.text}", f"from={self.folder}"]
        return shlex.join(words)


def upload_of(folder: Path, text: str, subject: str) -> Upload:
    """Raises JobError (64, 66, 69)."""
    address = parse(text, subject)
    if not any(is_exported(folder, lora=lora) for lora in (True, False)):
        remedy = "name the folder of a result with from=FOLDER; `export` makes one of a step checkpoint"
        raise JobError(bad_input(shown(folder), "holds no result", remedy))
    if problem := _lacking(address):
        raise JobError(problem)
    return Upload(folder, address)


def run(upload: Upload, environ: Mapping[str, str], say: Callable[[str], None]) -> int:
    """Upload; returns 0, 73 or 75. A signal ends it; the result stays."""
    secrets = secrets_of(environ)
    argv = (sys.executable, "-m", _MODULE, "upload", upload.address.text, str(upload.folder))
    last = ""
    with (
        subprocess.Popen(
            **child_process.options(argv, _environment(environ)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
        _ended_by_signals(process) as received,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if text := redact(line.rstrip(), secrets):
                say(text)
                last = text
        status = process.wait()
    if status == 0:
        return int(ExitCode.FINISHED)
    why = (
        f"{signal.Signals(received[0]).name}" if received else f"exit status {status}" if status < 0 else last
    )
    say(f"not published ({why}); the result is complete in {upload.folder}")
    say(f"    → Repeat it: {upload.again}")
    return int(ExitCode.OUTPUT_FULL if status == ExitCode.OUTPUT_FULL else ExitCode.STOPPED)


def on_request(
    arguments: Mapping[str, str], flags: Sequence[tuple[str, str]], environ: Mapping[str, str], home: Path
) -> int:
    """The verb: upload the result of a run, or what `export` made. Returns as `run`; raises JobError (64, 66, 69)."""
    read = settings.read(flags, environ)
    problems: list[Problem] = list(read.problems)
    layout = OutputLayout(mounts.resolve(read.options, home).output)
    folder = Path(arguments.get("from") or layout.checkpoint).expanduser().absolute()
    to = arguments.get("to") or read.options.publish
    if not to:
        remedy = "Write to=hub:USER/NAME, or the address of a folder, such as to=s3://BUCKET/FOLDER."
        raise JobError([*problems, bad_setting("to", "not given", remedy)])
    try:
        upload = upload_of(folder, to, "to")
    except JobError as error:
        raise JobError([*problems, *error.problems]) from None
    if problems:
        raise JobError(problems)
    return run(upload, {**environ, **read.passed_on}, lambda text: console.show(text, sys.stdout))


@contextlib.contextmanager
def _ended_by_signals(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Requests to stop end the process; yields those that were received. Only in the main thread there are any."""
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.terminate()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {
        number: signal.signal(number, end)
        for number in protocol.STOP_SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
