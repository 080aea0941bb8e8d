"""Our worker beside the example scripts of diffusers, on the embedded pipeline and the same pictures, on CPUs:

    PYTHONPATH=project python benchmarks/peer/compare.py --examples DIFFUSERS/examples [--runs 3] [--output DIR]

DIFFUSERS is a checkout of huggingface/diffusers at the tag of the installed version; nothing of it is part of this
project. Where torchvision is not installed, stand_in.py does for the scripts what they need of it.

The trainers take turns, round after round, so that what else the machine does meets all of them alike. The clock is
the optimiser's: a step lasts from the end of one update to the end of the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from sddemo.materialise import PIPELINE
from sddemo.world import caption, draw, scenes

sys.path.insert(0, str(Path(__file__).parent))
from table import Case, Run, figures, measured, rendered

HOME = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("probe.py")
PEER, OURS, CACHED = "diffusers", "this project", "this project, caches"
PICTURES = 48  # as many as every global batch here divides
LIMIT = 900  # seconds of a run


@dataclass(frozen=True)
class Recipe:
    """One example script, and the settings that make our worker do the same."""

    script: str
    subject: bool  # DreamBooth
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    streams: int = 1  # pictures of a step per picture of the batch


CLASS = ("--with_prior_preservation", "--class_prompt=a circle", f"--num_class_images={PICTURES}")
RECIPES = {
    "dreambooth, prior": Recipe(
        "dreambooth/train_dreambooth.py", True, CLASS, (*CLASS, "--image_interpolation_mode=bilinear"), 2
    ),
    "dreambooth, LoRA": Recipe(
        "dreambooth/train_dreambooth_lora.py", True, ("--rank=4",), ("--lora_rank=4",)
    ),
    "text_to_image, EMA": Recipe(
        "text_to_image/train_text_to_image.py", False, ("--use_ema", "--foreach_ema"), ("--use_ema",)
    ),
    "text_to_image, LoRA": Recipe(
        "text_to_image/train_text_to_image_lora.py", False, ("--rank=4",), ("--lora_rank=4",)
    ),
}


def main() -> int:
    asked = _parser().parse_args()
    scripts = [asked.examples / RECIPES[name].script for name in asked.recipes]
    if missing := [str(path) for path in scripts if not path.is_file()]:
        print(
            f"not there: {', '.join(missing)}; --examples is the folder examples/ of diffusers",
            file=sys.stderr,
        )
        return 66
    about = {
        **_about(scripts[0]),
        "runs": asked.runs,
        "steps": f"{asked.steps}, the first {asked.skip} left out",
    }
    stem = asked.output / f"{about['date']}-peer-cpu"
    runs: dict[tuple[Case, str], list[Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        _write_pictures(world)
        for _ in range(asked.runs):
            for case in _cases(asked):
                for way in (PEER, OURS, CACHED):
                    run = _run(case, way, asked, world)
                    runs.setdefault((case, way), []).append(run)
                    print(case, way, figures([run]), flush=True)
                _save(stem, {**about, "load at the end": _load()}, runs)
    return 0


def _cases(asked: argparse.Namespace) -> Iterator[Case]:
    """The small ones first, so that a run that is cut short has measured something of everything."""
    sizes = itertools.product(asked.processes, asked.resolutions, asked.batches)
    by_work = sorted(sizes, key=lambda size: size[0] * size[1] ** 2 * size[2])
    for (processes, resolution, batch), recipe in itertools.product(by_work, asked.recipes):
        yield Case(recipe, resolution, batch, processes, RECIPES[recipe].streams * batch * processes)


def _write_pictures(world: Path) -> None:
    """The captioned pictures, 256 px, which serve DreamBooth as pictures of the subject and of its class."""
    (world / "pictures").mkdir()
    (world / "captioned").mkdir()
    rows = []
    for number, scene in enumerate(scenes(PICTURES, seed=0)):
        picture = draw(scene).resize((256, 256), Resampling.BICUBIC)
        for folder in ("pictures", "captioned"):
            picture.save(world / folder / f"{number:04d}.png")
        rows.append(json.dumps({"file_name": f"{number:04d}.png", "text": caption(scene)}))
    (world / "captioned" / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def _run(case: Case, way: str, asked: argparse.Namespace, world: Path) -> Run:
    """One run in processes of its own."""
    with tempfile.TemporaryDirectory(dir=world) as folder:
        notes = Path(folder) / "notes"
        flags = _flags(case, way, asked, world, Path(folder) / "output")
        command = [*_starter(case), str(PROBE), str(notes), *flags]
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": str(asked.threads),
            "PYTHONPATH": str(HOME / "project"),
            "HF_HUB_OFFLINE": "1",
            "ACCELERATE_USE_CPU": "true",  # accelerate then takes gloo
        }
        began = time.time()
        done = subprocess.run(
            command, env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        ended = time.time()
        ranks = [Path(f"{notes}-{rank}.json") for rank in range(case.processes)]
        if done.returncode or not all(path.exists() for path in ranks):
            print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
            return Run(done.returncode, began=began, seconds=ended - began)
        return measured([json.loads(path.read_text()) for path in ranks], began, ended, asked.skip)


def _starter(case: Case) -> list[str]:
    if case.processes == 1:
        return [sys.executable]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={case.processes}",
    ]


def _flags(case: Case, way: str, asked: argparse.Namespace, world: Path, output: Path) -> list[str]:
    """fp32, AdamW at a constant rate, no loader processes, no checkpoint on the way; all else as each has it."""
    recipe = RECIPES[case.recipe]
    common = [
        f"--pretrained_model_name_or_path={PIPELINE}",
        f"--output_dir={output}",
        f"--resolution={case.resolution}",
        f"--train_batch_size={case.batch}",
        f"--max_train_steps={asked.steps}",
        "--center_crop",
        "--learning_rate=1e-4",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        "--dataloader_num_workers=0",
        "--mixed_precision=no",
        "--seed=0",
    ]
    if recipe.subject:
        common += [f"--instance_data_dir={world / 'pictures'}", "--instance_prompt=a sks circle"]
    else:
        common += [f"--train_data_dir={world / 'captioned'}"]
    if any("prior" in flag for flag in recipe.theirs):
        common += [f"--class_data_dir={world / 'pictures'}"]
    if way == PEER:
        return [str(asked.examples.resolve() / recipe.script), *common, *recipe.theirs]
    plugin = "none" if case.processes == 1 else "torch_ddp"
    kind = "dreambooth" if recipe.subject else "text_to_image"
    caches = ["--cache_latents=memory", "--cache_text_embeddings=memory"] if way == CACHED else []
    ours = [f"--recipe={kind}", f"--plugin={plugin}", "--device=cpu"]
    return ["-m", "sdtrain", *ours, *common, *recipe.ours, *caches]


def _save(stem: Path, about: dict[str, Any], runs: dict[tuple[Case, str], list[Run]]) -> None:
    """After every case: what has been measured outlives whatever comes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {**asdict(case), "trainer": way, "runs": [asdict(r) for r in of]} for (case, way), of in runs.items()
    ]
    stem.with_suffix(".json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(rendered(about, runs, PEER))


def _about(script: Path) -> dict[str, Any]:
    wanted = re.search(r'check_min_version\("([^"]+)"\)', script.read_text())
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_cpu()}",
        "load at the start": _load(),
        "example scripts": f"of diffusers {wanted[1] if wanted else 'unknown'}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate", "peft")},
    }


def _load() -> float:
    return round(os.getloadavg()[0], 1)


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> Sequence[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        "compare.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--examples", type=Path, required=True, help="the folder examples/ of diffusers")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--resolutions", type=numbers, default=[64, 128], help="pixels, such as 64,128")
    parser.add_argument("--batches", type=numbers, default=[1, 4], help="pictures per process, such as 1,4")
    parser.add_argument("--processes", type=numbers, default=[1, 2], help="such as 1,2")
    parser.add_argument("--threads", type=int, default=1, help="of each process [%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="rounds [%(default)s]")
    parser.add_argument("--steps", type=int, default=35, help="of each run [%(default)s]")
    parser.add_argument("--skip", type=int, default=5, help="of these, not counted [%(default)s]")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark"), help="folder for the table [%(default)s]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
