"""Write docker/locked/, which the images install: every pin with its hash (`make lock`, after a pin changed).

pip is asked which file it would take for each new pin, from the indices that it is configured with. Run it with the
Python version of the images, on Linux x86-64. Standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setup_venv import HERE, torch_sources

NAMES = ("-pip", "-torch", "-cuda", "-colossal", "-fa4", "")
PIN = re.compile(r"([\w.-]+)==([\w.]+)")


def main() -> int:
    for name in NAMES:
        pins, locked = HERE / f"requirements{name}.txt", HERE / "locked" / f"requirements{name}.txt"
        kept = {_key(line): line for line in locked.read_text().splitlines()} if locked.exists() else {}
        wanted = {_key(line): line for line in pins.read_text().splitlines() if PIN.match(line)}
        new = [line for key, line in wanted.items() if key not in kept]
        options = torch_sources() if name == "-torch" else []
        lines = [kept[key] for key in wanted if key in kept] + [_line(item) for item in _chosen(new, options)]
        head = f"# docker/{pins.name} with hashes, made by docker/lock.py; for CPython 3.11 on Linux x86-64."
        locked.write_text("\n".join([head, *sorted(lines)]) + "\n")
    return 0


def _key(line: str) -> tuple[str, str] | None:
    """The normalized name and the version of a pin, without its local build tag."""
    match = PIN.match(line)
    return (_name(match[1]), match[2]) if match else None


def _name(name: str) -> str:
    return re.sub(r"[._-]+", "-", name.lower())


def _chosen(pins: list[str], options: list[str]) -> list[dict[str, Any]]:
    """The files that pip would install for these pins, without dependencies."""
    if not pins:
        return []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
        subprocess.run([*command, "--quiet", "--report", str(report), *options, *pins], check=True)
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return found


def _line(item: dict[str, Any]) -> str:
    """One requirement with its hash, as pip reads it."""
    metadata, hashes = item["metadata"], item["download_info"]["archive_info"]["hashes"]
    return f"{_name(metadata['name'])}=={metadata['version']} --hash=sha256:{hashes['sha256']}"


if __name__ == "__main__":
    sys.exit(main())
