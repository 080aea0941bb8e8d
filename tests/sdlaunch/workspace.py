"""Mounts with a small pipeline and images, and ways to call the launcher."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.support.pipeline import make_fitting

HOME = Path(__file__).resolve().parents[2]


def make_workspace(root: Path) -> dict[str, str]:
    """Mounts below this folder, as the environment that names them."""
    make_fitting(root / "model" / "tiny")
    images = root / "dataset" / "images"
    images.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / f"{number}.png")
    return {
        "MODEL_DIR": str(root / "model"),
        "DATASET_DIR": str(root / "dataset"),
        "OUTPUT_DIR": str(root / "output"),
        "device": "cpu",
    }


def clean_environment(**variables: str) -> dict[str, str]:
    """A small environment with these variables."""
    return {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/nonexistent", **variables}


def launch(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """`bash train.sh …` in a clean environment."""
    return subprocess.run(
        ["bash", str(HOME / "train.sh"), *arguments],
        env=clean_environment(**variables),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def plan_json(*arguments: str, **variables: str):
    """(exit code, the object that `plan --json` prints)."""
    done = launch("plan", "--json", *arguments, **variables)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)
