"""What `speed.sh` runs: the speed of one GPU, one technique at a time, next to what was predicted from the trace.

Each row is a process of its own, `sdtrain.tools.benchmark_case` with random weights of the true size, or the example
script of diffusers (`peer`). The result is written after each row; rows that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import peer, prediction
from benchmarks.gpu.budget import NO_TIME, Budget, too_late
from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting import report
from sdtrain.tools import synthetic

Measure = Callable[[float], dict[str, Any]]  # within so many seconds
PARTS = ("ladder", "peer", "batches", "sd2", "lora")
_PER_ROW = {"cuda": 200, "cpu": 900}  # seconds after which a row is ended
_GUESSES = {
    "eager": 45.0,
    "compiled": 90.0,
    "peer": 90.0,
}  # seconds of a row, before one of its kind is measured


@dataclass(frozen=True)
class Row:
    """Settings to measure."""

    name: str
    model: str = "sd14"
    batch: int = 64
    cached: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def compiled(self) -> bool:
        return self.settings.get("compile", "off") != "off"

    @property
    def kind(self) -> str:
        return "compiled" if self.compiled else "eager"

    @property
    def attention(self) -> str:
        """The kernel that most of the attention runs with."""
        first = str(self.settings.get("attention", "flash")).partition(",")[0]
        return first if first in ("cudnn", "fa4") else "flash"

    @property
    def predicted(self) -> tuple[prediction.Cost, float] | None:
        """The cost of a step, and the bound in images/s; None: not traced."""
        rank = int(self.settings.get("lora_rank", 0))
        weights = "fp32" if rank else self.settings.get("weights_dtype", "bf16")
        cost = prediction.read().get(prediction.key(self.model, weights, self.batch, rank))
        return (cost, cost.bound(self.batch, self.attention, compiled=self.compiled)) if cost else None


_EAGER = {"compile": "off", "attention": "flash,math", "weights_dtype": "fp32"}
_BF16 = {**_EAGER, "weights_dtype": "bf16"}
_CUDNN = {**_BF16, "attention": "cudnn,flash,math"}
_BEST = {**_CUDNN, "compile": "whole"}


def rows(part: str, *, on_gpu: bool) -> Iterator[Row]:
    if not on_gpu:  # a dry run: every kind of row once, on the tiny model
        yield from (
            replace(row, model="tiny", batch=2, settings={**row.settings, "attention": "math"})
            for row in list(rows(part, on_gpu=True))[:2]
        )
        return
    match part:
        case "ladder":
            yield Row("uncached, fp32 weights", batch=8, cached=False, settings=_EAGER)
            yield Row("cached, fp32 weights", settings=_EAGER)
            yield Row("bf16 weights", settings=_BF16)
            yield Row("cuDNN attention", settings=_CUDNN)
            yield Row("compiled, flash", settings={**_BF16, "compile": "whole"})
            yield Row("compiled, cuDNN attention", settings=_BEST)
            yield Row("compiled by blocks, cuDNN attention", settings={**_BEST, "compile": "blocks"})
            yield Row("compiled, FA4", settings={**_BEST, "attention": "fa4,cudnn,flash,math"})
            yield Row("as by default", settings={})
            yield Row(
                "fsdp reshard_after_forward=0", settings={"plugin": "fsdp", "reshard_after_forward": "0"}
            )
        case "batches":
            for batch in prediction.BATCHES:
                yield Row("best", batch=batch, settings=_BEST)
        case "sd2":
            for batch in (64, 1, 8, 32, 96, 128):
                yield Row("best, SD 2 base", "sd2", batch, settings=_BEST)
        case "lora":
            yield Row("LoRA of rank 8", settings={**_EAGER, "lora_rank": 8})
            yield Row("LoRA of rank 8, best", settings={**_BEST, "weights_dtype": "auto", "lora_rank": 8})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [all]")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=520, help="after which everything has ended [%(default)s]"
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: use {', '.join(PARTS)}")
    asked.output.mkdir(parents=True, exist_ok=True)
    budget = Budget(asked.seconds, _GUESSES)
    name = _gpu()
    device = "cuda" if name else "cpu"
    table = _Table(asked.output, name, budget)
    for part in asked.parts or PARTS:
        if part == "peer":
            for row in peer.rows(on_gpu=bool(name)):
                title = f"diffusers script: {row.name}"
                table.measure(title, row.batch, "peer", partial(peer.measure, row))
            continue
        for row in rows(part, on_gpu=bool(name)):
            if row.batch == 64 and row.name in table.out_of_memory:
                row = replace(row, batch=32)
            table.measure(row.name, row.batch, row.kind, partial(_measured, row, device), row)
    return int(any(row["outcome"] == "failed" for row in table.rows))


class _Table:
    """The rows so far, on disk."""

    def __init__(self, output: Path, device: str, budget: Budget) -> None:
        today = datetime.now(timezone.utc).date().isoformat()
        self._stem = output / f"{today}-speed-{'cuda' if device else 'cpu'}"
        self._device = device or f"{os.cpu_count()} CPU cores"
        file = self._stem.with_suffix(".json")
        self.rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
        self.rows = [row for row in self.rows if row["outcome"] != NO_TIME]
        self._budget = budget
        for row in self.rows:
            if row["outcome"] == "ok":
                budget.learn(row["kind"], row["seconds"])

    @property
    def out_of_memory(self) -> set[str]:
        return {row["name"] for row in self.rows if row["outcome"] == "oom"}

    def measure(self, name: str, batch: int, kind: str, measure: Measure, row: Row | None = None) -> None:
        """Measure a row that is not there yet, unless it would not end in time, and write it."""
        if any((each["name"], each["batch"]) == (name, batch) for each in self.rows):
            return
        started = time.monotonic()
        why = self._budget.why_not(kind)
        found = {"outcome": NO_TIME, "why": why} if why else measure(self._budget.left)
        predicted = row.predicted if row else None
        if predicted and "images_per_second" in found:
            cost, bound = predicted
            rate = found["images_per_second"]
            found |= {
                "predicted_images_per_second": bound * prediction.REACHED,
                "tflops": rate * cost.flops / batch / 1e12,
                "of_bound": rate / bound,
                "predicted_peak_bytes": cost.peak,
            }
        seconds = time.monotonic() - started
        if found["outcome"] == "ok":
            self._budget.learn(kind, seconds)
        found = {"name": name, "batch": batch, "kind": kind, "seconds": seconds, **found}
        self.rows.append(found)
        print(_line(found), flush=True)
        self._write()

    def _write(self) -> None:
        conditions = {"device": self._device, "versions": report.versions()}
        self._stem.with_suffix(".json").write_text(
            json.dumps({**conditions, "rows": self.rows}, indent=1) + "\n"
        )
        versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
        head = [
            f"# Speed of one device: {self._device}",
            "",
            "Random weights, 512 px, bf16, latents and prompts cached unless it says otherwise; the bound and the",
            "prediction (68 % of it) are for an H200: benchmarks/gpu/prediction.py.",
            "",
            versions,
            "",
            "| row | batch | images/s | predicted | TFLOP/s | of the bound | peak (GB) | predicted | attention |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        self._stem.with_suffix(".md").write_text("\n".join([*head, *map(_line, self.rows), ""]))


def _line(row: dict[str, Any]) -> str:
    def cell(key: str, form: str, scale: float = 1) -> str:
        return format(row[key] * scale, form) if row.get(key) is not None else "–"

    rate = cell("images_per_second", ".1f") if "images_per_second" in row else row["outcome"]
    if "why" in row:
        rate = f"{rate}: {row['why'].splitlines()[0][:90]}"
    cells = (
        *(row["name"], str(row["batch"]), rate, cell("predicted_images_per_second", ".1f")),
        *(cell("tflops", ".0f"), cell("of_bound", ".0%")),
        *(cell("peak_memory_bytes", ".1f", 1e-9), cell("predicted_peak_bytes", ".1f", 1e-9)),
        str(row.get("attention", "–")),
    )
    return f"| {' | '.join(cells)} |"


def flags(row: Row) -> list[str]:
    """The settings of a row as the worker gets them."""
    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": row.model,
        "output_dir": "-",
        "recipe": "text_to_image",
        "plugin": "none",
        "resolution": synthetic.RESOLUTIONS[row.model],
        "train_batch_size": row.batch,
        "max_train_steps": 16 if row.batch >= 32 else 40,
        "skip_steps": 6,
        "center_crop": "true",  # without which latents cannot be cached
        **dict.fromkeys(("cache_latents", "cache_text_embeddings"), "memory" if row.cached else "no"),
        **{
            name: value
            for name, value in row.settings.items()
            if name in RunSpec.model_fields or value != "off"
        },
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def _measured(row: Row, device: str, seconds: float) -> dict[str, Any]:
    """Run one row in its own process, for at most so many seconds."""
    limit = _PER_ROW[device]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, "-m", "sdtrain.tools.benchmark_case", row.model, str(file), *flags(row)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=min(limit, seconds)
            )
        except subprocess.TimeoutExpired:
            return too_late(limit, seconds)
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if "images_per_second" in found:
        return {"outcome": "ok", **found}
    why = found.get("problem") or (done.stderr.strip().splitlines() or ["no message"])[-1]
    outcome = {71: "oom", 64: "refused", 69: "refused"}.get(int(found.get("code", done.returncode)), "failed")
    return {"outcome": outcome, "why": why}


def _gpu() -> str:
    """The name of the GPU; empty: none. In another process, so that its memory is free."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
