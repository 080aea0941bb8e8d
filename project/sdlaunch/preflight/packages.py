"""The Python packages that a run needs, and which of them are missing."""

from __future__ import annotations

from sdjob.problems import Problem, no_hardware
from sdjob.settings.choices import TRACKERS
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import PLUGINS
from sdlaunch.packages import PACKAGES, install_command, missing, not_installed
from sdlaunch.preflight.job import Job


def findings(job: Job) -> list[Problem]:
    """Packages that are missing, except those that are installed when the job starts."""
    needed = PACKAGES | {name: name for info in job.contents.data for name in info.format.packages}
    found = _of_every_run(missing(needed), job)
    package = OPTIMIZERS[job.spec.optimizer].package
    if package and not (job.has_script or job.packages_come) and missing({package: package}):
        install = f"Install: {install_command([package])}"
        remedy = f"{install}; or set install_requirements=1, or use optimizer=adamw."
        found.append(no_hardware("optimizer", f"{package} is not installed", remedy))
    if not (job.has_script or job.packages_come):
        used = [facts for name, facts in TRACKERS.items() if name in job.spec.report_to]
        found += _of_trackers(missing({facts.module: facts.package for facts in used}))
    plugin = PLUGINS[job.spec.plugin]
    if plugin.package and job.topology.device in plugin.devices and missing({plugin.package: plugin.package}):
        remedy = "pip install --no-deps --requirement docker/requirements-colossal.txt, or use plugin=fsdp."
        found.append(no_hardware("plugin", f"{plugin.package} is not installed", remedy))
    return found


def _of_trackers(lacking: list[str]) -> list[Problem]:
    remedy = (
        f"Install: {install_command(lacking)}; or set install_requirements=1, or use report_to=tensorboard."
    )
    return [no_hardware("report_to", f"{', '.join(lacking)} not installed", remedy)] if lacking else []


def _of_every_run(lacking: list[str], job: Job) -> list[Problem]:
    if job.packages_come:
        lacking = [package for package in lacking if package == "torch"]
    if not lacking:
        return []
    other = "set install_requirements=1"
    if "torch" in lacking:
        other = "use an image that has PyTorch (install_requirements=1 does not install it)"
    return [not_installed(lacking, otherwise=f"; or {other}.")]
