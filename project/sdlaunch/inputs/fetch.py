"""What a job needs and this machine lacks: Python packages, and models or datasets of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdjob.problems import Problem
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.settings.resolve import Settings

PACKAGES = "packages"


@dataclass(frozen=True)
class Fetched:
    """What is there, after fetching if that was allowed; `awaited`: model_name, dataset_name, packages."""

    options: LaunchOptions  # with folders instead of names of the hub
    import_path: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def awaiting(self, what: str, reason: str | Problem) -> Fetched:
        """The same with one thing more that is awaited: it may come (a warning), or it did not (a problem)."""
        if isinstance(reason, Problem):
            return replace(self, awaited=(*self.awaited, what), problems=(*self.problems, reason))
        return replace(self, awaited=(*self.awaited, what), warnings=(*self.warnings, reason))


def gather(read: Settings, mounts: Mounts, home: Path, environ: Mapping[str, str], *, fetch: bool) -> Fetched:
    """Look what is there already. With `fetch`, get the rest; only then is anything written."""
    options, cache_dir = read.options, read.spec.cache_dir
    fetched = Fetched(options)
    if options.install_requirements:
        from sdlaunch.inputs import pip_install

        project = mounts.project if options.script else None
        fetched = pip_install.provide(fetched, home, project, cache_dir, environ, fetch=fetch)
    if not options.offline:
        from sdlaunch.inputs import hub

        fetched = hub.provide(fetched, mounts, cache_dir, environ, fetch=fetch and not fetched.problems)
    return fetched
