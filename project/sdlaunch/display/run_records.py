"""The records of a run on disk: the plan, the settings to replay it, the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from sdjob.automatic import caching
from sdjob.formatting import as_json
from sdjob.output.layout import OutputLayout
from sdjob.redact import is_secret, redact, without_secrets_in
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdjob.writing import write_text
from sdlaunch.display.tables import Value
from sdlaunch.plan import JobPlan
from sdlaunch.settings import names
from sdlaunch.settings.other_variables import is_recorded

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "accelerate", "peft", "colossalai", "numpy")
# Settings of a single start, which are left out of the settings to replay.
_NOT_REPLAYED = ("ENV_FILE", "CONFIG_FILE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def write_all(plan: JobPlan, layout: OutputLayout, environ: Mapping[str, str]) -> None:
    """run/plan.json, run/spec.yaml and run/environment.json."""
    layout.make(layout.run)
    write_text(layout.run / "plan.json", redact(as_json(plan.to_dict()), plan.secrets) + "\n", private=True)
    write_text(layout.run / "spec.yaml", replayable(plan), private=True)
    facts = as_json(_facts(plan, environ))
    write_text(layout.run / "environment.json", facts + "\n", private=True)


def replayable(plan: JobPlan) -> str:
    """The settings as a YAML file that CONFIG_FILE reads back to the same job; secrets have to be given again."""
    import yaml

    by_epochs = "epoch" in plan.given and "num_train_step" not in plan.given
    not_replayed = {
        *_NOT_REPLAYED,
        *(["num_train_step"] if by_epochs else []),  # they follow from the epochs
        *(field for field, about in settings_of(RunSpec).items() if about.flag_only),  # from the mounts
    }
    values = {
        name: _redacted(each.value, plan.secrets)
        for name, each in plan.settings.items()
        if each.value not in (None, [], "") and name not in not_replayed and not _is_of_worker(name, each)
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)


def _is_of_worker(name: str, shown: Value) -> bool:
    """Whether the value is a forecast: the worker decides."""
    return name in caching.SETTINGS and shown.source.startswith("auto")


def _redacted(value: Any, secrets: tuple[str, ...]) -> Any:
    """Before it is spelled as YAML, where brackets mean a list."""
    if isinstance(value, list):
        return [_redacted(item, secrets) for item in value]
    return redact(value, secrets) if isinstance(value, str) else value


def _facts(plan: JobPlan, environ: Mapping[str, str]) -> dict[str, Any]:
    recorded = {
        name: text
        for name, text in sorted(environ.items())
        if is_recorded(name) or (names.lookup(name) and not is_secret(name))
    }
    return {
        "python": sys.version.split()[0],
        "platform": system_name(),
        "packages": {name: version for name in _PACKAGES if (version := version_of(name))},
        "environment": {
            name: redact(without_secrets_in(text) if name.lower() == "script_args" else text, plan.secrets)
            for name, text in recorded.items()
        },
        "other_variables": sorted(environ.keys() - recorded.keys()),
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
