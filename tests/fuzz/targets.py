"""What is read of others, each file in a workspace that is whole without it, and what may come of any content."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdjob.exit_codes import ExitCode
from sdjob.formatting import visible
from sdjob.output.checkpoint_files import MANIFEST, SETTINGS, STATE
from sdjob.output.layout import OutputLayout, write_manifest
from sdjob.output.newest_checkpoint import newest
from sdjob.output.run_settings import settings_of
from sdjob.problems import JobError, Problem
from sdjob.protocol import ExitNote, Heartbeat
from sdlaunch import plan
from sdlaunch.display import text as display
from tests.sdlaunch.workspace import HOME, clean_environment, make_workspace
from tests.support.datasets import png
from tests.support.pipeline import make_fitting

MODEL, IMAGES, CHECKPOINT = "model/tiny", "dataset/images", "output/checkpoint/checkpoint-000002"
REFUSED = {int(code) for code in (ExitCode.BAD_SETTING, ExitCode.BAD_INPUT, ExitCode.NO_HARDWARE)}
NO_OUTPUT = int(ExitCode.OUTPUT_FULL)
Environment = dict[str, str]


@dataclass(frozen=True)
class Target:
    """A file by its path in the workspace; `check` raises where something else than documented comes of it."""

    path: str
    contents: tuple[bytes, ...]  # from which others are made; the first one is good
    variables: Mapping[str, str] = field(default_factory=dict)
    codes: frozenset[int] = frozenset(REFUSED)
    check: Callable[[Target, Path, Environment], None] = lambda *arguments: _check_plan(*arguments)

    @property
    def name(self) -> str:
        return self.path.replace("/", "__")

    def run(self, root: Path, workspace: Environment, content: bytes) -> None:
        """Put this content in the place of the file, and check what comes of it."""
        path = root / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.is_file() else None
        path.write_bytes(content)
        try:
            self.check(self, root, workspace)
        finally:
            path.unlink(missing_ok=True)
            if before is not None:
                path.write_bytes(before)


def _check_plan(target: Target, root: Path, workspace: Environment) -> None:
    variables = {name: value.replace("{root}", str(root)) for name, value in target.variables.items()}
    job = plan.prepare((), clean_environment(**{**workspace, **variables}), HOME)
    check_problems(job.problems, target.codes)
    for text in (display.plan(job), display.plan_json(job)):
        assert visible(text) == text, "a text of others is shown raw"


def check_problems(problems: tuple[Problem, ...], codes: frozenset[int]) -> None:
    for problem in problems:
        assert problem.subject and problem.found and problem.remedy, problem
        assert problem.code in codes, problem


def _check_checkpoint(target: Target, root: Path, _workspace: Environment) -> None:
    folder = root / CHECKPOINT
    if not target.path.endswith(MANIFEST):
        write_manifest(folder)  # what another program, or another version, has written as a whole
    try:
        for hashes in (False, True):
            newest(OutputLayout(root / "output"), "auto", lambda *_: None, hashes=hashes)
        settings_of(folder)
    except JobError as error:
        check_problems(error.problems, target.codes)


def _check_notes(target: Target, root: Path, _workspace: Environment) -> None:
    notes = (root / target.path).parent
    for note in ExitNote.read_all(notes):
        check_problems(note.problems, frozenset(map(int, ExitCode)))
    Heartbeat.read_all(notes)  # signals go only to processes of the launcher's own, whatever it says


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _table(file: Callable[[Any, Any], object]) -> bytes:
    images = [{"bytes": png(), "path": "a.png"}, {"bytes": png("blue"), "path": None}]
    out = io.BytesIO()
    file(pa.table({"image": images, "text": ["one", "two"]}), out)
    return out.getvalue()


def _stream(table: pa.Table, out: Any) -> None:
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)


def _csv() -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([("file_name", "text"), ("0.png", 'a "quoted", caption'), ("1.png", "b")])
    return out.getvalue().encode()


_CAPTIONS = {"recipe": "text_to_image"}
_SAVED = {"DATASET_DIR": "{root}/saved", **_CAPTIONS}
_STATE = {
    "format": 3,
    "step": 2,
    "samples_seen": 2,
    "loss": 0.5,
    "loss_sum": 1.0,
    "fingerprint": {"seed": "7"},
}
_NOTE = {
    "rank": 0,
    "code": 70,
    "step": 3,
    "time": 1.5,
    "problems": [{"code": 66, "subject": "a", "found": "b", "remedy": "c"}],
}
_SETTINGS = b'recipe: text_to_image\nlr: 1e-4\nvalidation_prompts: ["a dog", "b"]\nuse_ema: true\n'


def prepare(root: Path) -> tuple[Environment, list[Target]]:
    """A workspace, and the targets in it: files that it has lose their content meanwhile."""
    workspace = make_workspace(root)
    make_fitting(root / "other")
    (root / "saved").mkdir()
    (root / CHECKPOINT).mkdir(parents=True)
    good = {"model.safetensors": b"", STATE: _json(_STATE), SETTINGS: _json([])}
    for name, content in good.items():
        (root / CHECKPOINT / name).write_bytes(content)
    write_manifest(root / CHECKPOINT)
    manifest = (root / CHECKPOINT / MANIFEST).read_bytes()
    saved = {
        "data.arrow": _table(_stream),
        "state.json": _json({"_data_files": [{"filename": "data.arrow"}], "_split": "train"}),
        "dataset_info.json": b"{}",
    }
    for name, content in saved.items():
        (root / "saved" / name).write_bytes(content)

    def model(path: str) -> Target:
        own = root / MODEL / path
        return Target(f"{MODEL}/{path}", (own.read_bytes(),))

    concepts = _json([{"instance_prompt": "a sks dog", "instance_data_dir": str(root / IMAGES), "weight": 2}])
    rows = [{"file_name": f"{n}.png", "text": "a “caption”"} for n in range(2)]
    jsonl = b"".join(_json(row) + b"\n" for row in rows)
    output = REFUSED | {NO_OUTPUT}
    targets = [
        Target(
            "job.env",
            (b"lr=1e-4\nbatch_size=2\n# why\ninstance_prompt=a dog\n",),
            {"ENV_FILE": "{root}/job.env"},
        ),
        Target("job.yaml", (_SETTINGS,), {"CONFIG_FILE": "{root}/job.yaml"}),
        Target(
            "accelerate.yaml",
            (b"distributed_type: MULTI_CPU\nnum_processes: 2\n",),
            {"launcher": "accelerate", "accelerate_config": "{root}/accelerate.yaml"},
        ),
        Target("concepts.yaml", (concepts,), {"concepts_list": "{root}/concepts.yaml"}),
        Target("train.py", (b"import sys\nprint(sys.argv)\n",), {"script": "{root}/train.py"}),
        *map(
            model,
            (
                "model_index.json",
                "unet/config.json",
                "vae/config.json",
                "text_encoder/config.json",
                "scheduler/scheduler_config.json",
                "tokenizer/vocab.json",
                "unet/diffusion_pytorch_model.safetensors",
            ),
        ),
        Target(
            f"{MODEL}/tokenizer/tokenizer.json",
            (
                _json(
                    {"model": {"type": "BPE", "vocab": {"a": 1}}, "added_tokens": [{"content": "b", "id": 2}]}
                ),
            ),
        ),
        Target(
            f"{MODEL}/unet/diffusion_pytorch_model.safetensors.index.json",
            (_json({"weight_map": {"a": "b.safetensors"}}),),
        ),
        Target(f"{IMAGES}/metadata.jsonl", (jsonl,), _CAPTIONS),
        Target(f"{IMAGES}/metadata.csv", (_csv(),), _CAPTIONS),
        Target(f"{IMAGES}/0.txt", (b"a caption\n", "eine Bildunterschrift".encode("utf-16")), _CAPTIONS),
        Target(f"{IMAGES}/9.png", (png(),)),
        Target("tables/a.parquet", (_table(pq.write_table),), {"DATASET_DIR": "{root}/tables", **_CAPTIONS}),
        *(Target(f"saved/{name}", (content,), _SAVED) for name, content in saved.items()),
        Target(
            "output/run/starts.json",
            (_json([{"begin": 1.0, "end": 2.0, "processes": 1}]),),
            codes=frozenset(output),
        ),
        Target(
            "output/run/metrics.jsonl",
            (_json({"step": 1, "loss": 0.5, "images_per_second": 3.0}) + b"\n",),
            codes=frozenset(output),
        ),
        Target("output/report.json", (_json({"steps": 2}),), codes=frozenset(output)),
        Target("output/failure.json", (_json({"class": "a", "code": 70}),), codes=frozenset(output)),
        Target(
            "output/run/lock-0",
            (_json({"pid": os.getpid(), "host": "a", "node": 0}),),
            codes=frozenset(output),
        ),
        Target("output/run/failure-1.json", (_json({"class": "a", "code": 70}),), codes=frozenset(output)),
        Target(f"{CHECKPOINT}/{STATE}", (_json(_STATE),), check=_check_checkpoint),
        Target(f"{CHECKPOINT}/{SETTINGS}", (_json(["--lr_scheduler=constant"]),), check=_check_checkpoint),
        Target(f"{CHECKPOINT}/{MANIFEST}", (manifest,), check=_check_checkpoint),
        Target("notes/rank-0.json", (_json(_NOTE),), check=_check_notes),
        Target("notes/alive-0", (_json({"pid": 7, "stage": "step", "step": 1}),), check=_check_notes),
    ]
    return workspace, targets
