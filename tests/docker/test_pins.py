"""Tests of docker/requirements*.txt and docker/locked/: both have the same versions."""

import re
from pathlib import Path

import pytest

DOCKER = Path(__file__).resolve().parents[2] / "docker"
LOCKED = sorted(path.name for path in (DOCKER / "locked").iterdir())


def pins(path: Path) -> dict[str, str]:
    """Normalized names, and versions without local build tags."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    found = [
        re.fullmatch(r"([\w.-]+)==([\w.]+)(\+cpu)?( --hash=sha256:[0-9a-f]{64})?", line) for line in lines
    ]
    assert None not in found, path
    return {re.sub(r"[._]", "-", match[1].lower()): match[2] for match in found if match}


@pytest.mark.parametrize("name", LOCKED)
def test_every_pin_is_locked_with_its_hash(name):
    text = (DOCKER / "locked" / name).read_text()
    assert pins(DOCKER / "locked" / name) == pins(DOCKER / name), "run `make lock`"
    assert text.count("--hash=") == text.count("==")


def test_every_file_that_the_image_installs_is_locked():
    named = set(re.findall(r"requirements[\w-]*\.txt", (DOCKER / "Dockerfile").read_text()))
    assert named == set(LOCKED)
    assert len(named) >= 4
