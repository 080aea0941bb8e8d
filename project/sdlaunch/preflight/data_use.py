"""What is used of the dataset's mount, and what looks like data there and is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdjob.dataset.concepts import concepts_of
from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.unused import find_unused, rows_in
from sdjob.formatting import counted
from sdjob.problems import bad_setting
from sdlaunch.preflight.job import Finding, Job, Note

_KEPT = 0.3  # fraction of the time for the checks that stays free


def findings(job: Job) -> list[Finding]:
    """The splits as lines of the plan, and warnings of what is not used. A script reads what it wants."""
    if job.has_script:
        return []
    data = [(info, job.contents.dataset_root) for info in (job.contents.dataset,) if info]
    if job.contents.subjects:
        roots = (Path(concept.instance_data_dir) for concept in concepts_of(job.spec))
        data += zip(job.contents.subjects, roots, strict=True)
    return [finding for info, root in data for finding in _of(job, info, root)]


def _of(job: Job, info: DatasetInfo, root: Path) -> Iterator[Finding]:
    wanted = job.spec.dataset_split
    if wanted and not info.split and info is job.contents.dataset:
        remedy = "Leave dataset_split empty, or set dataset_name to the folder of that split."
        yield bad_setting("dataset_split", f"{wanted}, and no name in {root} says a split", remedy)
        return
    search = find_unused(info, root, job.until - _KEPT * job.patience)
    splits = [each for each in search.unused if each.split]
    if info.split or splits:
        used = f"split {info.split}" if info.split else "what is of no split"
        left = "; ".join(f"{each}{rows_in(root, each)}" for each in splits) or "nothing"
        yield Note(f"dataset: {used}, {counted(info.num_examples, 'image')}; left out: {left}")
    for each in search.unused:
        if not each.split:
            yield f"DATASET_DIR: not used of {root}: {each}"
    if not search.is_whole:
        yield f"DATASET_DIR: check_timeout={job.patience:g} was too short to look for unused data in all of {root}"
