"""What the launcher costs: `python benchmarks/launcher/measure.py` prints a Markdown table.

Needs about 500 MB in /dev/shm or TMPDIR for the folder of a million files, and a few minutes.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(HOME), str(HOME / "project")]

from tests.sdlaunch.workspace import clean_environment, make_workspace  # noqa: E402

RUNS = 9
FILES = 1_000_000
DRIVER = HOME / "tests" / "support" / "driver.py"


def seconds(argv: list[str], environ: dict[str, str]) -> float:
    """Wall-clock time of a command that must succeed."""
    begin = time.perf_counter()
    subprocess.run(argv, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def side_by_side(*commands: tuple[list[str], dict[str, str]], runs: int = RUNS) -> list[list[float]]:
    """Times of several commands, taken in turn, so that other load affects all of them equally."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(runs):
        for found, (argv, environ) in zip(times, commands, strict=True):
            found.append(seconds(argv, environ))
    return times


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s (least {min(times):.2f}, {len(times)} runs)"


def start_times(workspace: dict[str, str]) -> list[str]:
    dry_run = (["bash", str(HOME / "train.sh"), "--dry-run"], clean_environment(**workspace))
    nothing = ([sys.executable, "-c", "pass"], clean_environment())
    dry, bare = side_by_side(dry_run, nothing)
    return [f"| `bash train.sh --dry-run` | {shown(dry)} |", f"| `python -c pass` | {shown(bare)} |"]


def added_to_torchrun(root: Path, workspace: dict[str, str]) -> list[str]:
    """The whole launcher, from reading the settings to its verdict, around torchrun with a worker that ends at once."""
    (root / "noop.py").write_text("")
    environ = clean_environment(**workspace, PYTHONPATH=str(root), NPROC_PER_NODE="1")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        "-m",
        "noop",
    ]
    accelerate = [
        sys.executable,
        *("-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "-m", "noop"),
    ]
    ours, bare, peer = side_by_side(
        ([sys.executable, str(DRIVER), "noop"], environ), (torchrun, environ), (accelerate, environ), runs=7
    )
    added = statistics.median(a - b for a, b in zip(ours, bare, strict=True))
    return [
        f"| torchrun of a worker that does nothing | {shown(bare)} |",
        f"| the same under the launcher | {shown(ours)} |",
        f"| median of the differences | {added:.2f} s |",
        f"| `accelerate launch` of the same, which starts it without torchrun | {shown(peer)} |",
    ]


def memory(root: Path, workspace: dict[str, str]) -> list[str]:
    """Resident memory of the launcher itself during training."""
    (root / "busy.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    environ = clean_environment(**workspace, PYTHONPATH=str(root))
    with subprocess.Popen(
        [sys.executable, str(DRIVER), "busy"], env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        next(line for line in process.stdout if "ready" in line)
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        )
        for _ in range(2):
            process.terminate()
            time.sleep(0.5)
    used, peak = (int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return [f"| memory of the launcher while training | {used:.0f} MiB (peak {peak:.0f}) |"]


def million_files(root: Path, workspace: dict[str, str]) -> list[str]:
    """`check` of a folder with a million images, hard links to one."""
    folder = root / "million"
    folder.mkdir()
    image = next((root / "dataset" / "images").iterdir())
    first = folder / "0.png"
    shutil.copy(image, first)
    for number in range(1, FILES):
        os.link(first, folder / f"{number}.png")
    environ = clean_environment(**{**workspace, "DATASET_DIR": str(folder)})
    (times,) = side_by_side((["bash", str(HOME / "train.sh"), "check"], environ), runs=3)
    return [f"| `check` of {FILES:,} images in one folder | {shown(times)} |"]


def main() -> None:
    base = "/dev/shm" if shutil.disk_usage("/dev/shm").free > 1 << 30 else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        root = Path(folder)
        workspace = make_workspace(root)
        print(
            f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start\n"
        )
        print("| what | figure |\n|---|---|")
        for measure in (lambda: start_times(workspace), lambda: added_to_torchrun(root, workspace)):
            print(*measure(), sep="\n", flush=True)
        for measure in (lambda: memory(root, workspace), lambda: million_files(root, workspace)):
            print(*measure(), sep="\n", flush=True)
        print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
