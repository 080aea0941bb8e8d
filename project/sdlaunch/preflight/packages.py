"""The Python packages that a run needs, and which of them are missing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec

from sdjob.dataset.detect import FORMATS
from sdjob.problems import Problem, no_hardware
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import PLUGINS
from sdlaunch.preflight.job import Job

# Import name → what to install.
PACKAGES = {
    "torch": "torch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "numpy": "numpy",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
    "peft": "peft",
    "tokenizers": "tokenizers",
}
FORMAT_PACKAGES = {name: name for each in FORMATS for name in each.packages}


def findings(job: Job) -> list[Problem]:
    """Packages that are missing, but for those that are installed when the job starts."""
    needed = PACKAGES | {name: name for info in job.contents.data for name in info.format.packages}
    lacking = missing(needed)
    found = _lacking(lacking, job)
    of_optimizer = OPTIMIZERS[job.spec.optimizer].package
    if of_optimizer and not (job.has_script or job.packages_come) and missing({of_optimizer: ""}):
        remedy = f"Install: {sys.executable} -m pip install {of_optimizer}; or use optimizer=adamw."
        found.append(no_hardware("optimizer", f"{of_optimizer} is not installed", remedy))
    package = PLUGINS[job.spec.plugin].package
    if package and job.topology.device in PLUGINS[job.spec.plugin].devices and missing({package: package}):
        remedy = "pip install --no-deps --requirement docker/requirements-colossal.txt, or use plugin=fsdp."
        found.append(no_hardware("plugin", f"{package} is not installed", remedy))
    return found


def _lacking(lacking: list[str], job: Job) -> list[Problem]:
    if job.packages_come:
        lacking = [package for package in lacking if package == "torch"]
    if not lacking:
        return []
    remedy = f"Install: {sys.executable} -m pip install {' '.join(lacking)}"
    if "torch" in lacking:
        remedy += "; or use an image that has PyTorch (install_requirements=1 does not install it)"
    else:
        remedy += "; or set install_requirements=1"
    return [
        no_hardware("Python packages", f"{', '.join(lacking)} not installed for this Python", f"{remedy}.")
    ]


def missing(needed: Mapping[str, str]) -> list[str]:
    """What to install, of import name → package."""
    return [package for name, package in needed.items() if find_spec(name) is None]
