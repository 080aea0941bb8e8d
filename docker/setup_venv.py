"""Make .venv with everything that a job and its tests need: `python3 docker/setup_venv.py [--venv DIR]`.

Standard library only. Done once per set of pins; a second call ends at once. Packages come from the indices that pip
is configured with. TORCH_CPU_INDEX names an index with CPU builds of torch, used on machines without an NVIDIA
device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH = HERE / "requirements-torch.txt"
REQUIREMENTS = (HERE / "requirements.txt", HERE / "requirements-dev.txt")
WITHOUT_DEPENDENCIES = HERE / "requirements-colossal.txt"
UNAVAILABLE = 69


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, default=HERE.parent / ".venv")
    target: Path = parser.parse_args().venv
    if sys.version_info < (3, 11):
        return _fail(
            f"Python {sys.version.split()[0]}: the pinned set needs 3.11 or newer", "Use PYTHON=python3.11."
        )
    stamp = target / "pins.sha256"
    pins = _pins()
    python = target / "bin" / "python"
    if stamp.exists() and stamp.read_text() == pins:
        _compile(python)
        return 0
    try:
        venv.create(target, with_pip=True, clear=not stamp.exists() and target.exists())
    except (subprocess.CalledProcessError, ImportError):
        return _fail("this Python cannot make virtual environments", "apt-get install python3-venv")
    sources = torch_sources()
    if not _has_nvidia() and not _without_cuda(python, sources):
        print(
            "setup: pip finds a CUDA build of torch only, which runs on a CPU too but takes several GB more; "
            "to avoid that, set TORCH_CPU_INDEX to an index with CPU builds"
        )
    _pip(python, "install", *sources, "-r", str(TORCH))
    _pip(python, "install", *(f"--requirement={path}" for path in REQUIREMENTS))
    # pip builds it from its source archive, without a compiler: _run sets BUILD_EXT=0.
    _pip(python, "install", "--no-deps", f"--requirement={WITHOUT_DEPENDENCIES}")
    _compile(python)
    stamp.write_text(pins)
    return 0


def torch_sources() -> list[str]:
    """pip's options for torch: TORCH_CPU_INDEX, if it is set and there is no NVIDIA device."""
    index = os.environ.get("TORCH_CPU_INDEX")
    return ["--index-url", index] if index and not _has_nvidia() else []


def _has_nvidia() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _without_cuda(python: Path, options: list[str]) -> bool:
    """Whether pip would install torch with these options without a CUDA package (a dry run)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        asked = ["install", "--dry-run", "--quiet", "--report", str(report), *options, "-r", str(TORCH)]
        if _run(python, *asked, quiet=True) != 0:
            return False
        names = [item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]]
    return not any(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in names)


def _compile(python: Path) -> None:
    """Compile the project to byte code. A job writes none, since the project may be mounted read only, and each start
    of the launcher would take 0.1 s longer without. A read-only checkout is not an error."""
    compileall = [str(python), "-m", "compileall", "-q", str(HERE.parent / "project")]
    subprocess.run(compileall, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _pip(python: Path, *arguments: str) -> None:
    if _run(python, *arguments) != 0:
        sys.exit(_fail(f"pip {arguments[0]} failed", "See pip's message above; run the same command again."))


def _run(python: Path, *arguments: str, quiet: bool = False) -> int:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(
        command, env={**os.environ, "BUILD_EXT": "0"}, stdout=output, stderr=output, check=False
    ).returncode


def _pins() -> str:
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in (TORCH, *REQUIREMENTS, WITHOUT_DEPENDENCIES))
    ).hexdigest()


def _fail(found: str, remedy: str) -> int:
    print(f"setup: {found}\n    → {remedy}", file=sys.stderr)
    return UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
