"""The Python packages of a run: which are missing or broken, and the one command that installs them.

Imports nothing but the standard library: even the launcher's own packages may be missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from sdjob.problems import Problem, no_hardware

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
    "psutil": "psutil",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "dotenv": "python-dotenv",
}
_REQUIREMENTS = Path(__file__).resolve().parents[2] / "docker"
_IMPORT = """
import importlib, json, sys
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
print(json.dumps(failed))
"""


def missing(needed: Mapping[str, str]) -> list[str]:
    """The packages to install, given import name → package."""
    return [package for name, package in needed.items() if find_spec(name) is None]


def install_command(names: Iterable[str], versions: Mapping[str, str] | None = None) -> str:
    """One command for all of them, in these versions, or in those that were tested together on a CPU."""
    versions = versions or pinned_versions("", "-torch")
    pinned = (f"{name}=={versions[name]}" if name in versions else name for name in names)
    return f"{sys.executable} -m pip install {' '.join(pinned)}"


def not_installed(
    lacking: Sequence[str], *, versions: Mapping[str, str] | None = None, otherwise: str = ""
) -> Problem:
    """The problem of packages that are missing; `otherwise`: what to do instead of installing them."""
    found = f"{', '.join(lacking)} not installed for {sys.executable}"
    remedy = f"Install: {install_command(lacking, versions)}{otherwise}"
    return no_hardware("Python packages", found, remedy)


def pinned_versions(*files: str, folder: Path = _REQUIREMENTS) -> dict[str, str]:
    """Package → version, of the requirements files with these endings."""
    found: dict[str, str] = {}
    for name in files:
        path = folder / f"requirements{name}.txt"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        pins = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
        found |= {package.lower(): version for package, version in pins}
    return found


def broken(environ: Mapping[str, str], seconds: float) -> list[Problem]:
    """Import each installed package in a short-lived process, and name those that fail. Raises NoAnswer."""
    from sdlaunch.timeouts import ask

    installed = [name for name in PACKAGES if find_spec(name) is not None]
    failed: dict[str, str] = ask(["-c", _IMPORT, *installed], environ, seconds)
    # Others may fail because the first does, with the same error.
    causes = {error: name for name, error in reversed(failed.items())}
    return [
        no_hardware(
            "Python packages",
            f"{PACKAGES[name]} is installed, but cannot be imported ({error})",
            f"Install it again: {install_command([PACKAGES[name]])} --force-reinstall --no-deps",
        )
        for error, name in causes.items()
    ]
