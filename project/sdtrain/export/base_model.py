"""What the model card says of the base model: its name on the hub, where that is known, and its licence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdjob import reading
from sdjob.model.hub_cache import is_hub_name
from sdjob.output.layout import INDEX_FILE

_IN_CACHE = re.compile(r"(?:models--)?([^/]+?)--([^/]+)")  # of the hub's library, or of our own downloads
_FRONT_MATTER = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
_LICENCE = re.compile(r"[\w.+-]{1,64}")


@dataclass(frozen=True)
class BaseModel:
    """`name`: ORG/NAME of the hub, else the name of its folder or file."""

    name: str
    license: str | None = None


def describe(path: Path) -> BaseModel:
    """From its path, model_index.json and README.md; what cannot be read is not known."""
    in_cache = [found for part in path.parts if (found := _IN_CACHE.fullmatch(part))]
    recorded = str(_index_of(path).get("_name_or_path", ""))
    name = f"{in_cache[-1][1]}/{in_cache[-1][2]}" if in_cache else recorded
    return BaseModel(name if is_hub_name(name) else path.name, _license_of(path))


def _index_of(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        values = reading.json_of(reading.content(path / INDEX_FILE, reading.MESSAGE))
        return values if isinstance(values, dict) else {}
    return {}


def _license_of(path: Path) -> str | None:
    """The field in the front matter of a model card."""
    with contextlib.suppress(OSError, ValueError):
        text = reading.content(path / "README.md", reading.MESSAGE).decode("utf-8-sig").replace("\r\n", "\n")
        if front := _FRONT_MATTER.match(text):
            values = reading.yaml_of(front[1], yaml.SafeLoader)
            found = values.get("license") if isinstance(values, dict) else None
            return found if isinstance(found, str) and _LICENCE.fullmatch(found) else None
    return None
