"""`python -m sdtrain.tools.benchmark`: the tutorials' performance table, measured on this machine's devices.

Each row is a fresh process group on random weights of the true size; one that runs out of memory says `oom`, and the
next begins with an empty device. The first row of each batch size, Traditional, is one device without a plugin.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sdjob.problems import ExitCode
from sdjob.settings.plugins import PLUGINS
from sdtrain.reporting import report
from sdtrain.runtime import devices
from sdtrain.tools import synthetic

_TRADITIONAL = "none"
_GIB = 2**30
_CACHED = {"no": (False,), "yes": (True,), "both": (False, True)}
_KILLED = (-9, 137)  # by the kernel, for the host's memory


@dataclass(frozen=True)
class Case:
    """One row to measure: a plugin, or "none", with settings of its own, such as gemini and placement=cpu."""

    plugin: str
    settings: tuple[str, ...]
    batch_size: int
    processes: int
    cached: bool = False  # latents and prompts

    @property
    def name(self) -> str:
        plain = "Traditional" if self.plugin == _TRADITIONAL else self.plugin
        return " ".join([plain, *self.settings, *(["cached"] if self.cached else [])])


@dataclass(frozen=True)
class Row:
    """What was measured: images/s per device, or what came in the way."""

    strategy: str
    devices: int
    batch_size: int
    memory: float | None = None  # GiB, the largest of all devices
    images_per_second: float | None = None
    speedup: float | None = None
    outcome: str = "ok"
    cached: bool = False
    details: dict[str, Any] | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    processes = asked.nproc or _devices(asked.device)
    resolution = asked.resolution or synthetic.RESOLUTIONS[asked.model]
    about = _about(asked, resolution)
    asked.output.mkdir(parents=True, exist_ok=True)
    stem = asked.output / f"{about['date']}-{asked.model}-{about['device']}"
    sizes = [int(size) for size in asked.batch_sizes.split(",")]
    begin = time.monotonic()
    rows: list[Row] = []
    for case in cases(asked.plugins.split(","), sizes, processes, _CACHED[asked.cached]):
        if time.monotonic() - begin > asked.seconds:
            row = Row(case.name, case.processes, case.batch_size, cached=case.cached, outcome="no time left")
        else:
            row = _measured(case, asked, resolution)
        like = (r for r in rows if (r.batch_size, r.cached) == (row.batch_size, row.cached))
        rows.append(with_speedup(row, next(like, row)))
        print(render(rows).splitlines()[-1] if len(rows) > 1 else render(rows), flush=True)
        _keep(stem, asked.model, about, rows)
    print(f"saved {stem}.md and .json")
    return 0 if all(row.outcome != "failed" for row in rows) else int(ExitCode.TRAINING_FAILED)


def _keep(stem: Path, model: str, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Writes what is measured so far: whoever ends the benchmark early keeps it."""
    values = {**about, "rows": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    head = "\n".join(f"- {name}: {value}" for name, value in about.items())
    stem.with_suffix(".md").write_text(f"# Strategies at the size of {model}\n\n{head}\n\n{render(rows)}\n")


def cases(
    plugins: Sequence[str], batch_sizes: Sequence[int], processes: int, cached: Sequence[bool] = (False,)
) -> Iterator[Case]:
    """For each batch size Traditional first, then every `plugin[:setting=value…]`; with caches beside without."""
    for case in _plain_cases(plugins, batch_sizes, processes):
        for each in cached:
            yield replace(case, cached=each)


def _plain_cases(plugins: Sequence[str], batch_sizes: Sequence[int], processes: int) -> Iterator[Case]:
    for size in batch_sizes:
        yield Case(_TRADITIONAL, (), size, 1)
        for text in plugins:
            plugin, *settings = text.split(":")
            if plugin not in PLUGINS:
                raise SystemExit(f"unknown plugin {plugin!r}: use {', '.join(PLUGINS)}")
            if plugin != _TRADITIONAL:
                yield Case(plugin, tuple(settings), size, processes)


def with_speedup(row: Row, baseline: Row) -> Row:
    """Per device, against one device without a plugin at the same batch size."""
    if row.images_per_second is None or baseline.images_per_second is None:
        return row
    return Row(**{**asdict(row), "speedup": row.images_per_second / baseline.images_per_second})


def render(rows: Sequence[Row]) -> str:
    """The table in Markdown; images/s and GPU RAM are per device."""
    lines = [
        "| Strategy | #GPU | Batch Size | GPU RAM (GB) | images/s | speedup |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = [
            f"{row.memory:.2f}" if row.memory is not None else "–",
            f"{row.images_per_second:.2f}" if row.images_per_second is not None else row.outcome,
            f"{row.speedup:.2f}" if row.speedup is not None else "–",
        ]
        lines.append(f"| {row.strategy} | {row.devices} | {row.batch_size} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _measured(case: Case, asked: argparse.Namespace, resolution: int) -> Row:
    """Runs one case in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        done = subprocess.run(
            [
                *_launcher(case),
                "-m",
                "sdtrain.tools.benchmark_case",
                asked.model,
                str(result),
                *_flags(case, asked, resolution),
            ],
            env=dict(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        found = json.loads(result.read_text()) if result.exists() else {"code": done.returncode}
    row = Row(case.name, case.processes, case.batch_size, cached=case.cached)
    if "images_per_second" in found:
        memory, speed = found["peak_memory_bytes"] / _GIB, found["images_per_second"]
        return Row(**{**asdict(row), "memory": memory, "images_per_second": speed, "details": found})
    if found["code"] in (ExitCode.OUT_OF_MEMORY, *_KILLED):
        return Row(**{**asdict(row), "outcome": "oom", "details": found})
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    print(f"{case.name}, batch {case.batch_size}: {found.get('problem', last)}", file=sys.stderr)
    refused = found["code"] in (ExitCode.BAD_SETTING, ExitCode.NO_HARDWARE)
    return Row(**{**asdict(row), "outcome": "refused" if refused else "failed", "details": found})


def _launcher(case: Case) -> list[str]:
    if case.plugin == _TRADITIONAL:
        return [sys.executable]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        f"--nproc-per-node={case.processes}",
    ]


def _flags(case: Case, asked: argparse.Namespace, resolution: int) -> list[str]:
    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": asked.model,
        "output_dir": asked.output,
        "plugin": case.plugin,
        "train_batch_size": case.batch_size,
        "resolution": resolution,
        "mixed_precision": "fp16" if case.plugin == "torch_ddp_fp16" else asked.mixed_precision,
        "max_train_steps": asked.steps,
        "skip_steps": asked.skip_steps,
        "device": asked.device,
        "attention": asked.attention,
        "gradient_checkpointing": str(asked.gradient_checkpointing).lower(),
        "use_ema": str(asked.use_ema).lower(),
    }
    if case.cached:
        settings |= {"cache_latents": "memory", "cache_text_embeddings": "memory", "center_crop": "true"}
    return [*(f"--{name}={value}" for name, value in settings.items()), *(f"--{s}" for s in case.settings)]


def _devices(name: str) -> int:
    """How many of this machine's devices a row uses; a CPU is one."""
    kind = devices.choose(name)
    return 1 if kind.name in ("cpu", "mps") else int(kind.runtime.device_count())


def _about(asked: argparse.Namespace, resolution: int) -> dict[str, Any]:
    kind = devices.choose(asked.device)
    name = getattr(kind.runtime, "get_device_name", None)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": kind.name,
        "device name": str(name()) if name else f"{os.cpu_count()} cores",
        "model": f"{asked.model}, random weights, {resolution} px; VAE and text encoder in every step unless cached",
        "steps": f"{asked.steps}, the first {asked.skip_steps} not counted",
        "precision": asked.mixed_precision,
        "torch threads": torch.get_num_threads(),
        **report.versions(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sdtrain.tools.benchmark", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    everything = (
        "torch_ddp,torch_ddp_fp16,fsdp,low_level_zero,low_level_zero:zero_stage=2,gemini,gemini:placement=cpu"
    )
    parser.add_argument("--plugins", default=everything, help="plugin[:setting=value…],… [%(default)s]")
    parser.add_argument("--batch_sizes", default="1,4,8", help="per device [%(default)s]")
    parser.add_argument("--model", choices=sorted(synthetic.RESOLUTIONS), default="sd14")
    parser.add_argument("--nproc", type=int, default=0, help="processes of a row; 0: one per device")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; 0: the model's own")
    parser.add_argument("--mixed_precision", default="auto", choices=("auto", "no", "bf16", "fp16"))
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--skip_steps", type=int, default=5)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument(
        "--cached", choices=sorted(_CACHED), default="no", help="latents and prompts [%(default)s]"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no row is begun")
    parser.add_argument("--use_ema", action="store_true")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark"), help="folder for the table [%(default)s]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
