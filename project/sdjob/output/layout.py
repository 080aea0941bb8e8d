"""Paths of the output folder, and checkpoints in it: a manifest, written last, makes one complete."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdjob import reading
from sdjob.model.trainable import LORA_FILE
from sdjob.output.checkpoint_files import EMA, MANIFEST, MODEL, NUMBERS, OPTIMIZER, SETTINGS, SHARDS, STATE
from sdjob.writing import make_folder, refuse_links

INDEX_FILE = "model_index.json"
_LONGEST = 500  # characters of a defect, which names a file as the manifest does
_LARGEST_MANIFEST = 1 << 20  # bytes, of some thousand files
_STEP_FOLDER = re.compile(r"checkpoint-(\d{6,15})", re.ASCII)


class OutputLayout:
    """Every path below the output folder; the files in a step folder are in checkpoint_files.py."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = root / "checkpoint"  # step folders, and at the end the trained pipeline or LoRA
        self.tensorboard = root / "tensorboard"
        self.trackers = root / "trackers"  # what trackers that are packages keep on disk, also offline
        self.samples = root / "samples"
        self.before_after = self.samples / "before_after.png"
        self.inputs = self.samples / "inputs.png"  # the first training images as the trainer sees them
        self.input_prompts = self.samples / "inputs.json"
        self.class_images = root / "class_images"
        self.exports = root / "exports"  # results of step checkpoints, made by `export`
        self.logs = root / "logs"
        self.run = root / "run"  # plan, replayable settings, versions; while a job runs, its processes' notes
        self.starts = self.run / "starts.json"  # when each start began and ended
        self.metrics = self.run / "metrics.jsonl"  # one line a logged step
        self.events = self.run / "events.jsonl"  # one line for each checkpoint, skipped step, warning
        self.page_data = self.run / "report_data.js"  # what an open report.html loads again
        self.report = root / "report.json"
        self.page = root / "report.html"
        self.failure = root / "failure.json"

    def cache(self, cache_dir: str | None) -> Path:
        """Latents and encoded prompts cached on disk, and converted models: in `cache_dir` if it is set."""
        return Path(cache_dir).expanduser() if cache_dir else self.root / "cache"

    def log(self, node: int) -> Path:
        """What a node's launcher and its processes print, of all starts."""
        return self.logs / f"node-{node}.log"

    def rank_log(self, node: int, rank: int) -> Path:
        """What one rank prints, of all starts."""
        return self.logs / f"node-{node}" / f"rank-{rank}.log"

    def lock(self, node: int) -> Path:
        return self.run / f"lock-{node}"

    def folders(self) -> tuple[Path, ...]:
        """Every folder that a job may make here."""
        own = (
            self.checkpoint,
            self.tensorboard,
            self.trackers,
            self.samples,
            self.class_images,
            self.exports,
            self.logs,
            self.run,
        )
        return (*own, self.cache(None))

    def replaced_files(self) -> tuple[Path, ...]:
        """Files that are replaced as a whole, by a rename."""
        return (self.report, self.page, self.page_data, self.failure)

    def opened_files(self, node: int) -> tuple[Path, ...]:
        """Files that a later start opens again, to append or to rewrite."""
        return (self.metrics, self.events, self.log(node), self.lock(node))

    def make(self, folder: Path) -> None:
        """Make a folder, and those above it; a link below the output folder is refused. Raises OSError."""
        make_folder(folder, self.root)

    def refuse_links(self) -> None:
        """Raise OSError if a folder that a job writes to is a link."""
        for folder in self.folders():
            refuse_links(folder, self.root)

    def step_folder(self, step: int) -> Path:
        return self.checkpoint / f"checkpoint-{step:06d}"


@dataclass(frozen=True)
class StepFolder:
    """A checkpoint on disk; `defect`: why it cannot be used, None: no defect found so far."""

    step: int
    path: Path
    defect: str | None


def step_folders(layout: OutputLayout) -> list[StepFolder]:
    """All checkpoints with the defects that sizes show, newest first. Raises OSError."""
    if not layout.checkpoint.is_dir():
        return []
    found = []
    for path in layout.checkpoint.iterdir():
        match = _STEP_FOLDER.fullmatch(path.name)
        if match and _is_folder(path):
            found.append(StepFolder(int(match[1]), path, defect_of(path, hashes=False)))
    return sorted(found, key=lambda folder: folder.step, reverse=True)


def _is_folder(path: Path) -> bool:
    """Also one of which this user cannot know it, whose defect says why."""
    try:
        return path.is_dir()
    except OSError:
        return True


def is_step_folder(path: Path) -> bool:
    return _STEP_FOLDER.fullmatch(path.name) is not None


def is_exported(folder: Path, *, lora: bool) -> bool:
    """Whether the export is complete: this file is moved into place last."""
    return (folder / (LORA_FILE if lora else INDEX_FILE)).is_file()


def write_manifest(folder: Path) -> None:
    """Record size and SHA-256 of every file in the folder; the last file to be written there."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")


def defect_of(folder: Path, *, hashes: bool, largest: float = math.inf) -> str | None:
    """Why this checkpoint is incomplete or damaged; None: it is not.

    `hashes` compares all contents besides sizes; without it those of the files that are read before training alone.
    `largest`: bytes that all files may have; more need not be on the disk, and would be read for hours.
    """
    manifest = folder / MANIFEST
    try:
        if manifest.exists() and not manifest.is_file():
            return f"{MANIFEST} is not a file"
        files = reading.json_of(reading.content(manifest, _LARGEST_MANIFEST))["files"]
        recorded = {name: (int(values["bytes"]), str(values["sha256"])) for name, values in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the save did not finish"
    except (OSError, *reading.NOT_AS_WRITTEN) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if (size := sum(max(0, size) for size, _ in recorded.values())) > largest:
        return f"{MANIFEST} names files of {size:,} bytes, more than a checkpoint of this model has"
    missing = [] if STATE in recorded else [STATE]
    missing += [] if any(_is_weights(name) for name in recorded) else ["weights"]
    if missing:
        return f"{MANIFEST} names no {' and no '.join(missing)}"
    try:
        unlisted = next((name for name in _read_files(folder, recorded) if name not in recorded), None)
    except OSError as error:
        return f"its files cannot be read ({error})"
    if unlisted:
        return f"{unlisted} is not in {MANIFEST}"
    found = (
        _file_defect(folder / name, name, *values, hashes=hashes or name in (STATE, SETTINGS))
        for name, values in recorded.items()
    )
    first = next(filter(None, found), None)
    return first and first[:_LONGEST]


def _read_files(folder: Path, recorded: Iterable[str]) -> Iterator[str]:
    """What is read of a checkpoint, if it is there; and its folder of shards, if none of these is recorded."""
    shards = (f"{SHARDS}/{path.name}" for path in sorted((folder / SHARDS).glob("*.distcp")))
    every = (STATE, SETTINGS, MODEL, EMA, OPTIMIZER, NUMBERS, f"{SHARDS}/.metadata", *shards)
    yield from (name for name in every if (folder / name).exists())
    if (folder / SHARDS).exists() and not any(name.startswith(f"{SHARDS}/") for name in recorded):
        yield SHARDS


def _is_weights(name: str) -> bool:
    return name == MODEL or name.startswith(f"{SHARDS}/")


def _file_defect(path: Path, name: str, size: int, digest: str, *, hashes: bool) -> str | None:
    try:
        if not path.is_file():
            return f"{name} is not a file" if path.exists() else f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if name in (STATE, SETTINGS) and size > reading.MESSAGE:
            return f"{name} has {size} bytes, more than is read"
        if hashes and _sha256(path) != digest:
            return f"{name} has changed since it was saved"
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return f"{name} cannot be read ({error})"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
