"""Write the software bill of materials of this machine: `python docker/sbom.py FILE`, CycloneDX 1.6 as JSON.

All packages of this Python and of Debian. Standard library only; the same packages give the same bytes.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

Component = dict[str, object]


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill([*python_packages(), *debian_packages()]), indent=1) + "\n")


def bill(components: list[Component]) -> dict[str, object]:
    """The CycloneDX document with these components."""
    ordered = sorted(components, key=lambda component: str(component["bom-ref"]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "image", "name": "sd-finetune-launcher"}},
        "components": ordered,
    }


def python_packages() -> list[Component]:
    """The packages of this Python."""
    python = _component("python", platform.python_version(), "pkg:generic/python")
    found = {}
    for package in distributions():
        name = package.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        licence = package.metadata.json.get("license_expression")
        found[name] = _component(name, package.version, f"pkg:pypi/{name}", licence)
    return [python, *found.values()]


def debian_packages() -> list[Component]:
    """The packages of dpkg; none on a machine without it."""
    form = "${Package}\t${Version}\t${Architecture}\t${db:Status-Status}\n"
    try:
        asked = ["dpkg-query", "--show", f"--showformat={form}"]
        rows = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    except OSError:
        return []
    return [
        _component(name, version, f"pkg:deb/debian/{name}", arch=arch)
        for name, version, arch, status in (row.split("\t") for row in rows)
        if status == "installed"
    ]


def _component(name: str, version: str, place: str, licence: object = None, arch: str = "") -> Component:
    address = f"{place}@{quote(version)}" + (f"?arch={arch}" if arch else "")
    component: Component = {
        "type": "library",
        "bom-ref": address,
        "name": name,
        "version": version,
        "purl": address,
    }
    return component | ({"licenses": [{"expression": licence}]} if licence else {})


if __name__ == "__main__":
    main()
