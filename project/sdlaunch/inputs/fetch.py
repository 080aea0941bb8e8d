"""What a job needs and this machine lacks: Python packages, and models or datasets of the hub."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdjob.files import user_cache
from sdjob.problems import Problem
from sdjob.redact import redact, secrets_of
from sdlaunch import child_process
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.settings.settings import Settings

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


def gather(read: Settings, mounts: Mounts, home: Path, environ: Mapping[str, str], *, fetch: bool) -> Fetched:
    """Look what is there already. With `fetch`, get the rest; only then is anything written."""
    from sdlaunch.inputs import hub, pip_install  # both use what follows below

    options, cache = read.options, cache_folder(read.spec.cache_dir, environ)
    fetched = Fetched(options)
    if options.install_requirements:
        project = mounts.project if options.script else None
        fetched = pip_install.provide(
            fetched, home, project, read.spec.optimizer, cache, environ, fetch=fetch
        )
    if not options.offline:
        fetched = hub.provide(fetched, mounts, cache, environ, fetch=fetch and not fetched.problems)
    return fetched


def cache_folder(cache_dir: str | None, environ: Mapping[str, str]) -> Path:
    """`cache_dir`, else the user's cache folder, else (where that cannot be written) a temporary one."""
    return Path(cache_dir).expanduser().absolute() if cache_dir else user_cache(environ)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Run a program that downloads, and show its output as it comes, without secrets; returns why it failed, or ""."""
    secrets = secrets_of(environ)
    tail: deque[str] = deque(maxlen=30)
    with subprocess.Popen(
        argv,
        **child_process.options(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if shown := redact(line.rstrip(), secrets):
                    print(f"  {shown}", flush=True)
                    tail.append(shown)
            status = process.wait()
        finally:
            process.kill()  # if the launcher is stopped meanwhile
    errors = [line for line in tail if line.startswith("ERROR")] or list(tail)[-1:]
    return (" / ".join(errors) or f"exit status {status}") if status else ""
