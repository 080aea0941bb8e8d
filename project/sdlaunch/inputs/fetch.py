"""What a job needs and this machine does not have yet: packages, and names of the hub. Most jobs need neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdjob.problems import Problem
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.settings.resolve import Settings

PACKAGES = "packages"


@dataclass(frozen=True)
class Supplies:
    """What was found, or fetched, or is `awaited`: model_name, dataset_name, packages."""

    options: LaunchOptions  # with folders in place of names of the hub
    path: tuple[str, ...] = ()  # to import from
    awaited: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def gather(read: Settings, place: Mounts, home: Path, environ: Mapping[str, str], *, fetch: bool) -> Supplies:
    """Looks what is there already; with `fetch`, gets what is not. Only then is anything written."""
    options, spec = read.options, read.spec
    found = Supplies(options)
    if options.install_requirements:
        from sdlaunch.inputs import pip_install

        project = place.project if options.script else None
        packages = pip_install.provide(home, project, spec.cache_dir, environ, fetch=fetch)
        awaited = (PACKAGES,) if packages.awaited else ()
        found = Supplies(options, packages.path, awaited, packages.warnings, packages.problems)
    if not options.offline:
        from sdlaunch.inputs import hub

        fetched = hub.provide(
            options,
            place,
            spec.cache_dir,
            environ,
            fetch=fetch and not found.problems,
        )
        found = Supplies(
            fetched.options,
            found.path,
            (*found.awaited, *fetched.awaited),
            (*found.warnings, *fetched.warnings),
            (*found.problems, *fetched.problems),
        )
    return found
