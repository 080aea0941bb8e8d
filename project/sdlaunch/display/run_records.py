"""What a run leaves on disk about itself: the plan, the settings to replay it, the environment, a failure."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from sdjob.files import write_text
from sdjob.output.layout import OutputLayout
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.display.redact import redact, redacted_environment
from sdlaunch.plan import JobPlan

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "accelerate", "peft", "colossalai", "numpy")
# What describes one start, not the job: left out of the settings to replay.
_NOT_REPLAYED = ("ENV_FILE", "CONFIG_FILE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def write_all(plan: JobPlan, layout: OutputLayout, environ: Mapping[str, str]) -> None:
    """run/plan.json, run/spec.yaml and run/environment.json."""
    layout.run.mkdir(parents=True, exist_ok=True)
    write_text(layout.run / "plan.json", redact(as_json(plan.to_dict()), plan.secrets))
    write_text(layout.run / "spec.yaml", redact(replayable(plan), plan.secrets))
    write_text(layout.run / "environment.json", as_json(_surroundings(environ)))


def replayable(plan: JobPlan) -> str:
    """The settings as a YAML file that CONFIG_FILE reads back to the same job."""
    import yaml

    by_epochs = "epoch" in plan.given and "num_train_step" not in plan.given
    not_replayed = (*_NOT_REPLAYED, "num_train_step") if by_epochs else _NOT_REPLAYED  # it follows from them
    from_mounts = {field for field, about in settings_of(RunSpec).items() if about.flag_only}
    values = {
        name: each.value
        for name, each in plan.settings.items()
        if each.value not in (None, [], "") and name not in not_replayed and name not in from_mounts
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)


def _surroundings(environ: Mapping[str, str]) -> dict[str, Any]:
    system = os.uname()
    return {
        "python": sys.version.split()[0],
        # Not platform.platform(), which starts a process to ask for the processor.
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "environment": redacted_environment(environ),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
