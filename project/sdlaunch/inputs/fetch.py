"""What a job needs and this machine lacks: Python packages, and models or datasets of the hub."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sdjob.files import user_cache
from sdjob.problems import Problem
from sdjob.redact import redact, secrets_of
from sdlaunch import child_process
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.settings.settings import Settings

if TYPE_CHECKING:
    import psutil

PACKAGES = "packages"


@dataclass(frozen=True)
class Fetched:
    """What is there, after fetching if that was allowed; `awaited`: model_name, dataset_name, packages."""

    options: LaunchOptions  # the options with folders instead of names of the hub
    import_path: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # lines of the plan
    problems: tuple[Problem, ...] = ()

    def awaiting(self, what: str, reason: str | Problem) -> Fetched:
        """Add something that is awaited: it may still come (a warning), or it did not come (a problem)."""
        awaited = (*self.awaited, what)
        if isinstance(reason, Problem):
            return replace(self, awaited=awaited, problems=(*self.problems, reason))
        return replace(self, awaited=awaited, warnings=(*self.warnings, reason))


def gather(read: Settings, mounts: Mounts, environ: Mapping[str, str], *, fetch: bool) -> Fetched:
    """Look what is there already. With `fetch`, get the rest; only then is anything written."""
    from sdlaunch.inputs import hub, pip_install  # both use what follows below

    options, cache = read.options, cache_folder(read.spec.cache_dir, environ)
    fetched = Fetched(options)
    if options.install_requirements:
        project = mounts.project if options.script else None
        fetched = pip_install.provide(fetched, project, read.spec, cache, environ, fetch=fetch)
    if not options.offline:
        fetched = hub.provide(fetched, mounts, cache, environ, fetch=fetch and not fetched.problems)
    return fetched


def cache_folder(cache_dir: str | None, environ: Mapping[str, str]) -> Path:
    """`cache_dir`, else the user's cache folder, else (where that cannot be written) a temporary one."""
    return Path(cache_dir).expanduser().absolute() if cache_dir else user_cache(environ)


def run(argv: Sequence[str], environ: Mapping[str, str], patience: float, memory: int | None = None) -> str:
    """Run a program that downloads, and show its output as it comes, without secrets; returns why it failed, or "".

    `patience`: seconds (0: any time) without output or work, after which it is ended; `memory`: bytes that it may take.
    """
    secrets = secrets_of(environ)
    tail: deque[str] = deque(maxlen=30)
    with subprocess.Popen(
        **child_process.options(argv, environ, memory),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        watch = _Watch(process.pid, patience)
        try:
            for line in process.stdout:
                watch.lines += 1
                if shown := redact(line.rstrip(), secrets):
                    print(f"  {shown}", flush=True)
                    tail.append(shown)
            status = process.wait()
        finally:
            watch.ended.set()
            process.kill()  # if the launcher is stopped meanwhile
    if watch.stuck:
        return f"no progress within hang_timeout={patience:g} s"
    errors = [line for line in tail if line.startswith("ERROR")] or list(tail)[-1:]
    return (" / ".join(errors) or f"exit status {status}") if status else ""


class _Watch:
    """Ends a program, with all processes below it, that neither writes a line nor computes for some time.

    Data that arrive take time of the processor too.
    """

    def __init__(self, pid: int, patience: float) -> None:
        self.lines, self.stuck, self.ended = 0, False, threading.Event()
        if patience and find_spec("psutil"):  # else it is about to be installed
            threading.Thread(target=self._watch, args=(pid, patience), daemon=True).start()

    def _watch(self, pid: int, patience: float) -> None:
        import psutil

        seen, since = self._signs(pid), time.monotonic()
        while not self.ended.wait(min(1.0, patience / 10)):
            if (signs := self._signs(pid)) != seen:
                seen, since = signs, time.monotonic()
            elif time.monotonic() - since > patience:
                self.stuck = True
                for process in _tree(pid):
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                return

    def _signs(self, pid: int) -> tuple[int, float]:
        """Lines so far, and seconds of the processor."""
        import psutil

        seconds = 0.0
        for process in _tree(pid):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds += times.user + times.system
        return self.lines, seconds


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    import psutil

    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
