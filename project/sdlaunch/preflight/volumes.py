"""What a job will write, volume by volume, against the bytes that are free there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdjob.formatting import counted, in_units
from sdjob.model.single_file import converted_folder
from sdjob.output.layout import OutputLayout, step_folders
from sdjob.problems import bad_output
from sdlaunch.preflight import caches, disk_space
from sdlaunch.preflight.job import Finding, Job

_FEWER = (
    "Mount a larger volume, keep fewer (checkpoints_total_limit=1), or make them less often "
    "(checkpointing_steps)."
)


@dataclass(frozen=True)
class Demand:
    """Bytes that will be written somewhere below a folder: at least, and at most."""

    subject: str  # the setting that names the folder
    folder: Path
    least: int
    most: int
    what: str
    remedy: str
    there: Callable[[], int] = lambda: (
        0
    )  # bytes of it that are written already; asked for only where space is short


def findings(job: Job) -> list[Finding]:
    """Room on each volume itself, for everything that is written there together."""
    by_volume: dict[int, tuple[Path, int, list[Demand]]] = {}
    for demand in _demands(job):
        existing, volume, free = _free_at(demand.folder)
        by_volume.setdefault(volume, (existing, free, []))[2].append(demand)
    return [finding for of_volume in by_volume.values() for finding in _judged(*of_volume)]


def _judged(existing: Path, free: int, demands: Sequence[Demand]) -> Iterator[Finding]:
    if free >= sum(demand.most for demand in demands):
        return
    there = sum(demand.there() for demand in demands)
    least, most = (
        sum(sizes) - there
        for sizes in ([demand.least for demand in demands], [demand.most for demand in demands])
    )
    largest = max(demands, key=lambda demand: demand.least)
    what = ", and ".join(demand.what for demand in demands)
    if free < least:
        found = f"{in_units(free)} free at {existing}, {in_units(least)} needed: {what}"
        yield bad_output(largest.subject, found, largest.remedy)
    elif free < most:
        yield (
            f"{largest.subject}: {in_units(free)} free at {existing}, and up to {in_units(most)} needed: {what}"
        )


def _demands(job: Job) -> Iterator[Demand]:
    spec, model, output = job.spec, job.contents.model, job.mounts.output
    size = disk_space.sizes(spec, model) if model else None
    if size:
        more = disk_space.more_at_once(spec, step_folders(OutputLayout(output)))
        needed = size.checkpoint * more + size.result
        what = (
            f"{counted(more, 'checkpoint')} of {in_units(size.checkpoint)}, "
            f"and the result of {in_units(size.result)}"
        )
        yield Demand("OUTPUT_DIR", output, needed, needed, what, _FEWER)
    if job.has_script:
        return
    subject = "cache_dir" if spec.cache_dir else "OUTPUT_DIR"
    if model and model.single:
        folder = converted_folder(model.single, spec.cache_dir, output)
        if not folder.is_dir():
            copied = sum(part.num_bytes for part in model.parts.values())
            what = f"the model as a folder, which is made of the one file, of {in_units(copied)}"
            remedy = "Set cache_dir to a folder on a larger volume."
            yield Demand(subject, folder, copied, copied, what, remedy)
    for each in caches.of(job):
        if each.where == "disk":
            folder = caches.folder_of(spec, output) / each.name
            remedy = f"Set cache_dir to a folder on a larger volume, or leave {each.setting}=no."
            least, most = each.least * each.size, each.most * each.size
            yield Demand(subject, folder, least, most, str(each), remedy, _written(folder, each))


def _written(folder: Path, entries: caches.Entries) -> Callable[[], int]:
    """Entries of other data may lie there too, but no more than all that are wanted count."""

    def there() -> int:
        if not folder.is_dir():
            return 0
        names = (name for _, _, files in os.walk(folder) for name in files if name.endswith(".safetensors"))
        return min(sum(1 for _ in names), entries.least) * entries.size

    return there


def _free_at(path: Path) -> tuple[Path, int, int]:
    """The first folder from here upwards that is there, the number of its volume, and the free bytes. Asked without
    a look before: the check of writing makes and removes the output folder meanwhile."""
    for folder in (path, *path.parents):
        try:
            return folder, folder.stat().st_dev, shutil.disk_usage(folder).free
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
