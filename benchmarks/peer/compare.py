"""Compare the worker with the example scripts of diffusers, on the embedded pipeline and the same images, on CPUs:

    PYTHONPATH=project python benchmarks/peer/compare.py --examples DIFFUSERS/examples [--runs 3] [--output DIR]

DIFFUSERS is a checkout of huggingface/diffusers at the tag of the installed version; its files are not part of this
project. Where torchvision is not installed, stand_in.py replaces the parts that the scripts use.

The trainers run together and take turns, step by step, so that other load affects all of them equally.
The clock is the optimizer's: a step lasts from the end of one update to the end of the next. Starts are measured in
separate runs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from sddemo.scenes import caption, render, scenes
from sddemo.write_demo import PIPELINE

sys.path.insert(0, str(Path(__file__).parent))
from table import Case, Run, Runs, faster, known, measured, read, starts, steps
from turns import Turns, start

HOME = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("probe.py")
PEER, OURS = "diffusers", "this project"
WAYS: dict[str, tuple[str, ...]] = {  # name of a trainer -> its flags
    PEER: (),
    f"{OURS}, no caches": ("--cache_latents=no", "--cache_text_embeddings=no"),
    OURS: (),  # with its defaults: images and prompts are encoded once, before the first step
    f"{OURS}, compiled": ("--compile=whole",),
}
IMAGES = 16  # a multiple of every global batch here; each is used more than once
LIMIT = 900  # seconds of a run


@dataclass(frozen=True)
class Recipe:
    """One example script, and the settings that make our worker do the same."""

    script: str
    subject: bool  # DreamBooth
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    streams: int = 1  # images of a step per image of the batch


CLASS = ("--with_prior_preservation", "--class_prompt=a circle", f"--num_class_images={IMAGES}")
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
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # end the trainers too
    scripts = [asked.examples / RECIPES[name].script for name in asked.recipes]
    if missing := [str(path) for path in scripts if not path.is_file()]:
        print(
            f"not there: {', '.join(missing)}; --examples is the folder examples/ of diffusers",
            file=sys.stderr,
        )
        return 66
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder))
        for what in asked.what:
            _KINDS[what](asked, Path(folder), _about(scripts[0]))
    return 0


def _measure_steps(asked: argparse.Namespace, world: Path, about: dict[str, Any]) -> None:
    about |= {
        "trainers": ", ".join(asked.trainers),
        "steps": f"{asked.steps}, the first {asked.skip} and the last left out",
    }
    runs = _earlier(asked.output, "steps", about)
    about |= {"runs": asked.runs}
    for number in range(asked.runs):
        for case in _cases(asked):
            if len(runs.get((case, PEER), ())) > number:  # measured before an interruption
                continue
            for way, run in _together(case, asked, world).items():
                runs.setdefault((case, way), []).append(run)
            _save(asked.output, "steps", about, runs, steps(about | _load("at the end"), runs, PEER))
            print(case, f"{faster(runs[case, OURS], runs[case, PEER]):.2f} × the peer's steps/s", flush=True)


def _measure_starts(asked: argparse.Namespace, world: Path, about: dict[str, Any]) -> None:
    runs: dict[tuple[Case, str], list[Run]] = {}
    about |= {"runs": asked.runs}
    for _ in range(asked.runs):
        for case, way in itertools.product(_starts(asked), (PEER, OURS)):
            runs.setdefault((case, way), []).append(_alone(case, way, asked, world))
            _save(asked.output, "starts", about, runs, starts(about | _load("at the end"), runs))


def _cases(asked: argparse.Namespace) -> Iterator[Case]:
    """All cases, small ones first, so that an interrupted run has measured some of every recipe."""
    sizes = itertools.product(asked.processes, asked.resolutions, asked.batches)
    by_work = sorted(sizes, key=lambda size: size[0] * size[1] ** 2 * size[2])
    for (processes, resolution, batch), recipe in itertools.product(by_work, asked.recipes):
        yield Case(recipe, resolution, batch, processes, RECIPES[recipe].streams * batch * processes)


def _starts(asked: argparse.Namespace) -> Iterator[Case]:
    """One case per recipe: the time of a start does not depend on sizes."""
    processes = min(asked.processes)
    for recipe in asked.recipes:
        yield Case(recipe, min(asked.resolutions), 1, processes, RECIPES[recipe].streams * processes)


def _write_images(world: Path) -> None:
    """The captioned images, 256 px, which serve DreamBooth as images of the subject and of its class."""
    (world / "images").mkdir()
    (world / "captioned").mkdir()
    rows = []
    for number, scene in enumerate(scenes(IMAGES, seed=0)):
        image = render(scene).resize((256, 256), Resampling.BICUBIC)
        for folder in ("images", "captioned"):
            image.save(world / folder / f"{number:04d}.png")
        rows.append(json.dumps({"file_name": f"{number:04d}.png", "text": caption(scene)}))
    (world / "captioned" / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def _together(case: Case, asked: argparse.Namespace, world: Path) -> dict[str, Run]:
    """Run all trainers at once, in turns; one that fails ends the others."""
    with tempfile.TemporaryDirectory(dir=world) as folder, contextlib.ExitStack() as stack:
        trainers: dict[str, _Trainer] = {}
        for position, way in enumerate(asked.trainers):
            turns = Turns(Path(folder), position, len(asked.trainers), asked.steps)
            trainer = _Trainer(case, way, asked, world, Path(folder) / f"trainer-{position}")
            trainers[way] = trainer.started(asked.steps, turns.environment())
            stack.callback(trainer.killed)
        with contextlib.suppress(RuntimeError):  # the run's exit code reports the failure
            start(
                Path(folder),
                len(asked.trainers),
                lambda: all(trainer.lives() for trainer in trainers.values()),
            )
            return {way: trainer.run(asked.skip) for way, trainer in trainers.items()}
        return {way: trainer.killed() for way, trainer in trainers.items()}


def _alone(case: Case, way: str, asked: argparse.Namespace, world: Path) -> Run:
    """Run one trainer for two steps."""
    with tempfile.TemporaryDirectory(dir=world) as folder:
        trainer = _Trainer(case, way, asked, world, Path(folder)).started(2, {})
        try:
            return trainer.run(skip=1)
        finally:
            trainer.killed()


class _Trainer:
    """One run in separate processes, which leave notes in a folder."""

    def __init__(self, case: Case, way: str, asked: argparse.Namespace, world: Path, folder: Path) -> None:
        self._case, self._way, self._asked, self._world, self._folder = case, way, asked, world, folder
        folder.mkdir(exist_ok=True)

    def started(self, steps: int, environment: Mapping[str, str]) -> _Trainer:
        flags = _flags(self._case, self._way, self._asked, steps, self._world, self._folder / "output")
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": str(self._asked.threads),
            "PYTHONPATH": str(HOME / "project"),
            "HF_HUB_OFFLINE": "1",
            "ACCELERATE_USE_CPU": "true",  # accelerate then takes gloo
            **environment,
        }
        self._began = time.time()
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [*_starter(self._case), str(PROBE), str(self._folder / "notes"), *flags],
                env=environ,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def lives(self) -> bool:
        return self._process.poll() is None and time.time() - self._began < LIMIT

    def run(self, skip: int) -> Run:
        """Wait for the end; print the output of a failed run."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LIMIT)
        ended = time.time()
        ranks = [self._folder / f"notes-{rank}.json" for rank in range(self._case.processes)]
        if self._process.returncode != 0:
            return self.killed()
        return measured([json.loads(path.read_text()) for path in ranks], self._began, ended, skip)

    def killed(self) -> Run:
        """End it if it is still running."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.returncode:
            print(self._way, (self._folder / "log").read_text()[-4000:], file=sys.stderr)
        return Run(self._process.returncode, self._began)


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


def _flags(
    case: Case, way: str, asked: argparse.Namespace, steps: int, world: Path, output: Path
) -> list[str]:
    """fp32, AdamW at a constant rate, no loader processes, no intermediate checkpoint; else each trainer's defaults."""
    recipe = RECIPES[case.recipe]
    common = [
        f"--pretrained_model_name_or_path={PIPELINE}",
        f"--output_dir={output}",
        f"--resolution={case.resolution}",
        f"--train_batch_size={case.batch}",
        f"--max_train_steps={steps}",
        "--center_crop",
        "--learning_rate=1e-4",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        "--dataloader_num_workers=0",
        "--mixed_precision=no",
        "--seed=0",
    ]
    if recipe.subject:
        common += [f"--instance_data_dir={world / 'images'}", "--instance_prompt=a sks circle"]
    else:
        common += [f"--train_data_dir={world / 'captioned'}"]
    if any("prior" in flag for flag in recipe.theirs):
        common += [f"--class_data_dir={world / 'images'}"]
    if way == PEER:
        return [str(asked.examples.resolve() / recipe.script), *common, *recipe.theirs]
    plugin = "none" if case.processes == 1 else "torch_ddp"
    name = "dreambooth" if recipe.subject else "text_to_image"
    ours = [f"--recipe={name}", f"--plugin={plugin}", "--device=cpu"]
    return ["-m", "sdtrain", *ours, *common, *recipe.ours, *WAYS[way]]


def _save(folder: Path, what: str, about: dict[str, Any], runs: Runs, text: str) -> None:
    """Write the tables after every case, so that a later failure loses no measurement."""
    rows = [
        {**asdict(case), "trainer": way, "runs": list(map(known, of))} for (case, way), of in runs.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    stem = _stem(folder, what, about)
    stem.with_suffix(".json").write_text(json.dumps({**about, "rows": rows}) + "\n")
    stem.with_suffix(".md").write_text(text)


def _earlier(folder: Path, what: str, about: Mapping[str, Any]) -> dict[tuple[Case, str], list[Run]]:
    """The runs of a file of today, with which this command goes on if they measured the same thing."""
    path = _stem(folder, what, about).with_suffix(".json")
    found = json.loads(path.read_text()) if path.is_file() else {}
    same = all(found.get(name) == about[name] for name in about if not name.startswith("load"))
    return read(found["rows"]) if same else {}


def _stem(folder: Path, what: str, about: Mapping[str, Any]) -> Path:
    return folder / f"{about['date']}-peer-{what}-cpu"


def _about(script: Path) -> dict[str, Any]:
    wanted = re.search(r'check_min_version\("([^"]+)"\)', script.read_text())
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_cpu()}",
        **_load("at the start"),
        "example scripts": f"of diffusers {wanted[1] if wanted else 'unknown'}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate", "peft")},
    }


def _load(when: str) -> dict[str, float]:
    return {f"load {when}": round(os.getloadavg()[0], 1)}


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
    parser.add_argument("--what", nargs="+", choices=_KINDS, default=list(_KINDS), metavar="steps|starts")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument(
        "--trainers",
        nargs="+",
        choices=WAYS,
        default=list(WAYS)[:3],
        metavar="TRAINER",
        help=f"of {', '.join(WAYS)}; compiling takes minutes a case",
    )
    parser.add_argument("--resolutions", type=numbers, default=[64, 128], help="pixels, such as 64,128")
    parser.add_argument("--batches", type=numbers, default=[1, 4], help="images per process, such as 1,4")
    parser.add_argument("--processes", type=numbers, default=[1, 2], help="such as 1,2")
    parser.add_argument("--threads", type=int, default=1, help="of each process [%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="rounds, earlier ones included [%(default)s]")
    parser.add_argument("--steps", type=int, default=35, help="of each run [%(default)s]")
    parser.add_argument("--skip", type=int, default=5, help="of these, not counted [%(default)s]")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark"), help="folder for the table [%(default)s]"
    )
    return parser


_KINDS = {"steps": _measure_steps, "starts": _measure_starts}

if __name__ == "__main__":
    sys.exit(main())
