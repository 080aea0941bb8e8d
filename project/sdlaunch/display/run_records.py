"""The records of a run on disk: the plan, the settings to replay it, the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from sdjob.files import write_text
from sdjob.formatting import as_json
from sdjob.output.layout import OutputLayout
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.display.redact import redact, redacted_environment
from sdlaunch.plan import JobPlan

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "accelerate", "peft", "colossalai", "numpy")
# Settings of a single start, which are left out of the settings to replay.
_NOT_REPLAYED = ("ENV_FILE", "CONFIG_FILE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def write_all(plan: JobPlan, layout: OutputLayout, environ: Mapping[str, str]) -> None:
    """run/plan.json, run/spec.yaml and run/environment.json."""
    layout.run.mkdir(parents=True, exist_ok=True)
    write_text(layout.run / "plan.json", redact(as_json(plan.to_dict()), plan.secrets) + "\n")
    write_text(layout.run / "spec.yaml", redact(replayable(plan), plan.secrets))
    write_text(layout.run / "environment.json", as_json(_environment(environ)) + "\n")


def replayable(plan: JobPlan) -> str:
    """The settings as a YAML file that CONFIG_FILE reads back to the same job."""
    import yaml

    by_epochs = "epoch" in plan.given and "num_train_step" not in plan.given
    not_replayed = {
        *_NOT_REPLAYED,
        *(["num_train_step"] if by_epochs else []),  # they follow from the epochs
        *(field for field, about in settings_of(RunSpec).items() if about.flag_only),  # from the mounts
    }
    values = {
        name: each.value
        for name, each in plan.settings.items()
        if each.value not in (None, [], "") and name not in not_replayed
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "platform": system_name(),
        "packages": {name: version for name in _PACKAGES if (version := version_of(name))},
        "environment": redacted_environment(environ),
    }


def system_name() -> str:
    """Not platform.platform(), which starts a process to ask for the processor."""
    system = os.uname()
    return f"{system.sysname} {system.release} {system.machine}"


def version_of(package: str) -> str | None:
    """The installed version; None: not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
