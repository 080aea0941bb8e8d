"""install_requirements=1: missing packages are installed outside the mounts; installed ones never change."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from sdjob.dataset.detect import FORMATS
from sdjob.problems import no_hardware
from sdjob.settings.choices import TRACKERS
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.run_spec import RunSpec
from sdlaunch.inputs.fetch import PACKAGES as AWAITED
from sdlaunch.inputs.fetch import Fetched, run
from sdlaunch.packages import PACKAGES, missing, pinned_versions


def provide(
    fetched: Fetched,
    project: Path | None,
    spec: RunSpec,
    cache: Path,
    environ: Mapping[str, str],
    *,
    fetch: bool,
) -> Fetched:
    """Find in the cache, or with `fetch` install there, what this Python lacks: of the packages of every run, of its
    optimizer and its trackers, and of the requirements.txt of the project of a user's script (None: no script)."""
    package = OPTIMIZERS[spec.optimizer].package
    optional = {package: package} if package else {}
    used = [facts for name, facts in TRACKERS.items() if name in spec.report_to]
    optional |= {facts.module: facts.package for facts in used}
    of_formats = {name: name for each in FORMATS for name in each.packages}
    lacking = missing(PACKAGES | ({} if project else optional) | of_formats)
    own = project / "requirements.txt" if project and (project / "requirements.txt").is_file() else None
    if "torch" in lacking or not (lacking or own):
        return fetched
    facts = [sys.version, sys.prefix, *lacking, own.read_text() if own else ""]
    folder = cache / "packages" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    if not folder.is_dir():
        wanted = ", ".join([*lacking, *([str(own)] if own else [])])
        if not fetch:
            return fetched.awaiting(AWAITED, f"Python packages: {wanted}: installed when the job starts")
        print(f"installing {wanted} into {folder}", flush=True)
        packages = [*lacking, *(["-r", str(own)] if own else [])]
        if reason := _install(packages, folder, environ, fetched.options.hang_timeout):
            remedy = (
                "Set PIP_INDEX_URL or PIP_FIND_LINKS to where they are, use another image, or set cache_dir."
            )
            return fetched.awaiting(AWAITED, no_hardware("install_requirements", reason, remedy))
    sites = sorted(site for site in folder.glob("**/*-packages") if site.name[:4] in ("site", "dist"))
    import_path = tuple(map(str, sites))
    sys.path += [site for site in import_path if site not in sys.path]  # for the checks
    importlib.invalidate_caches()
    return replace(fetched, import_path=import_path)


def _install(packages: Sequence[str], folder: Path, environ: Mapping[str, str], patience: float) -> str:
    """Run pip; the folder is renamed into place when everything is in it. Returns why it failed, or ""."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        part.mkdir(parents=True)
        pins = part / "pins.txt"
        pins.write_text("\n".join(_pins(pinned_versions(""))))
        flags = ["--disable-pip-version-check", "--no-input", f"--prefix={part}", f"--constraint={pins}"]
        argv = [sys.executable, "-m", "pip", "install", *flags, *packages]
        if reason := run(argv, environ, patience):  # compilers take what they need
            return f"pip could not install {', '.join(each for each in packages if each != '-r')} ({reason})"
        part.rename(folder)
    except OSError as error:
        made_meanwhile = folder.is_dir()  # by another launcher
        return "" if made_meanwhile else f"{error.filename or folder}: {error.strerror}"
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return ""


def _pins(pinned: Mapping[str, str]) -> list[str]:
    """Versions that pip must keep: those that are installed, else the pinned ones."""
    installed = {each.name: each.version for each in metadata.distributions() if each.name}
    versions = {_normal(name): version for name, version in (*pinned.items(), *installed.items())}
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
