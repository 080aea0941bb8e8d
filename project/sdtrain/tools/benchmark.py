"""`python -m sdtrain.tools.benchmark`: the tutorials' performance table, measured on this machine's devices.

Each row is a fresh process group on random weights of the true size; one that runs out of memory says `oom`, and the
next starts with an empty device. The first row of each batch size, Traditional, is one device without a plugin.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sdjob.children.start import ending_with_this
from sdjob.exit_codes import ExitCode
from sdjob.settings.plugins import PLUGINS
from sdtrain.reporting import report
from sdtrain.runtime import devices
from sdtrain.tools import synthetic

_TRADITIONAL = "none"
_PLUGINS = (
    "torch_ddp,torch_ddp_fp16,fsdp,low_level_zero,low_level_zero:zero_stage=2,gemini,gemini:placement=cpu"
)
_CACHED = {"no": (False,), "yes": (True,), "both": (False, True)}
_NO_TIME = "no time left"
_KILLED = (-9, 137)  # by the kernel, when host memory runs out


@dataclass(frozen=True)
class Case:
    """One row to measure: a plugin, or "none", with settings such as placement=cpu."""

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
    """The measurement of a case: images/s per device, or why there is none."""

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
    options = _options(arguments)
    conditions = _conditions(options)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"{conditions['date']}-{options.model}-{conditions['device']}"
    sizes = [int(size) for size in options.batch_sizes.split(",")]
    start, longest = time.monotonic(), 0.0
    earlier = _earlier(stem, conditions) if options.resume else {}
    rows: list[Row] = []
    for case in cases(options.plugins.split(","), sizes, options.nproc, _CACHED[options.cached]):
        row = Row(case.name, case.processes, case.batch_size, cached=case.cached)
        started = time.monotonic()
        if (known := (case.name, case.processes, case.batch_size)) in earlier:
            row = earlier[known]
        elif started - start + longest > options.seconds:
            row = replace(row, outcome=_NO_TIME)
        else:
            row = _measured(row, case, options)
            longest = max(longest, time.monotonic() - started)
        comparable = (r for r in rows if (r.batch_size, r.cached) == (row.batch_size, row.cached))
        rows.append(with_speedup(row, next(comparable, row)))
        print(render(rows).splitlines()[-1] if len(rows) > 1 else render(rows), flush=True)
        _write(stem, options.model, conditions, rows)
    print(f"saved {stem}.md and .json")
    return 0 if all(row.outcome != "failed" for row in rows) else int(ExitCode.TRAINING_FAILED)


def _earlier(stem: Path, conditions: Mapping[str, Any]) -> dict[tuple[str, int, int], Row]:
    """The rows that an earlier call has measured under the same conditions, by name, devices and batch size."""
    file = stem.with_suffix(".json")
    found = json.loads(file.read_text()) if file.is_file() else {}
    same = all(found.get(name) == value for name, value in conditions.items())
    rows = (Row(**value) for value in (found["rows"] if same and found else ()))
    return {(row.strategy, row.devices, row.batch_size): row for row in rows if row.outcome != _NO_TIME}


def _write(stem: Path, model: str, conditions: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the rows so far, so that nothing is lost when the benchmark is interrupted."""
    values = {**conditions, "rows": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    head = "\n".join(f"- {name}: {value}" for name, value in conditions.items())
    stem.with_suffix(".md").write_text(f"# Strategies at the size of {model}\n\n{head}\n\n{render(rows)}\n")


def cases(
    plugins: Sequence[str], batch_sizes: Sequence[int], processes: int, cached: Sequence[bool] = (False,)
) -> Iterator[Case]:
    """For each batch size Traditional first, then every `plugin[:setting=value…]`; without caches, then with them."""
    for size in batch_sizes:
        of_size = [Case(_TRADITIONAL, (), size, 1)]
        for text in plugins:
            plugin, *settings = text.split(":")
            if plugin not in PLUGINS:
                raise SystemExit(f"unknown plugin {plugin!r}: use {', '.join(PLUGINS)}")
            if plugin != _TRADITIONAL:
                of_size.append(Case(plugin, tuple(settings), size, processes))
        yield from (replace(case, cached=each) for case in of_size for each in cached)


def with_speedup(row: Row, baseline: Row) -> Row:
    """Per device, against one device without a plugin at the same batch size."""
    if row.images_per_second is None or baseline.images_per_second is None:
        return row
    return replace(row, speedup=row.images_per_second / baseline.images_per_second)


def render(rows: Sequence[Row]) -> str:
    """The table in Markdown; images/s and GPU RAM are per device."""
    lines = [
        "| Strategy | #GPU | Batch Size | GPU RAM (GB) | images/s | speedup |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = "–" if row.memory is None else f"{row.memory:.2f}"
        rate = row.outcome if row.images_per_second is None else f"{row.images_per_second:.2f}"
        speedup = "–" if row.speedup is None else f"{row.speedup:.2f}"
        lines.append(f"| {row.strategy} | {row.devices} | {row.batch_size} | {memory} | {rate} | {speedup} |")
    return "\n".join(lines)


def _measured(row: Row, case: Case, options: argparse.Namespace) -> Row:
    """Run one case in its own processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        module = ("-m", "sdtrain.tools.benchmark_case", options.model, str(file))
        done = subprocess.run(
            ending_with_this([*_launcher(case), *module, *_flags(case, options)]),
            env=dict(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        result = json.loads(file.read_text()) if file.exists() else {"code": done.returncode}
    row = replace(row, details=result)
    if "images_per_second" in result:
        memory = result["peak_memory_bytes"] / 2**30
        return replace(row, memory=memory, images_per_second=result["images_per_second"])
    if result["code"] in (ExitCode.OUT_OF_MEMORY, *_KILLED):
        return replace(row, outcome="oom")
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    print(f"{case.name}, batch {case.batch_size}: {result.get('problem', last)}", file=sys.stderr)
    refused = result["code"] in (ExitCode.BAD_SETTING, ExitCode.NO_HARDWARE)
    return replace(row, outcome="refused" if refused else "failed")


def _launcher(case: Case) -> list[str]:
    if case.plugin == _TRADITIONAL:
        return [sys.executable]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return [*torchrun, f"--nproc-per-node={case.processes}"]


def _flags(case: Case, options: argparse.Namespace) -> list[str]:
    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": options.model,
        "output_dir": options.output,
        "plugin": case.plugin,
        "train_batch_size": case.batch_size,
        "resolution": options.resolution,
        "mixed_precision": "fp16" if case.plugin == "torch_ddp_fp16" else options.mixed_precision,
        "max_train_steps": options.steps,
        "skip_steps": options.skip_steps,
        "device": options.device,
        "attention": options.attention,
        "gradient_checkpointing": str(options.gradient_checkpointing).lower(),
        "use_ema": str(options.use_ema).lower(),
    }
    if case.cached:
        settings |= {"cache_latents": "memory", "cache_text_embeddings": "memory", "center_crop": "true"}
    return [*(f"--{name}={value}" for name, value in settings.items()), *(f"--{s}" for s in case.settings)]


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    """The circumstances of the measurement, for the head of the table."""
    device_type = devices.choose(options.device)
    name = getattr(device_type.runtime, "get_device_name", None)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": device_type.name,
        "device name": str(name()) if name else f"{os.cpu_count()} cores",
        "model": f"{options.model}, random weights, {options.resolution} px; "
        "VAE and text encoder in every step unless cached",
        "steps": f"{options.steps}, the first {options.skip_steps} not counted",
        "precision": options.mixed_precision,
        "torch threads": torch.get_num_threads(),
        **report.versions(),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m sdtrain.tools.benchmark", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--plugins", default=_PLUGINS, help="plugin[:setting=value…],… [%(default)s]")
    parser.add_argument("--batch_sizes", default="1,4,8", help="per device [%(default)s]")
    parser.add_argument("--model", choices=sorted(synthetic.RESOLUTIONS), default="sd14")
    parser.add_argument("--nproc", type=int, default=0, help="processes of a row; 0: one per device")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; 0: the model's own")
    parser.add_argument("--mixed_precision", default="auto", choices=("auto", "no", "bf16", "fp16"))
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--skip_steps", type=int, default=5, help="not measured [%(default)s]")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument(
        "--cached", choices=sorted(_CACHED), default="no", help="latents and prompts [%(default)s]"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="no row starts that may end later")
    parser.add_argument("--resume", action="store_true", help="keep the rows of an earlier call of today")
    parser.add_argument("--use_ema", action="store_true")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark"), help="folder of the table [%(default)s]"
    )
    options = parser.parse_args(arguments)
    if options.skip_steps >= options.steps:
        parser.error(f"--skip_steps={options.skip_steps} leaves no step of {options.steps} to measure")
    options.nproc = options.nproc or devices.count(devices.choose(options.device))
    options.resolution = options.resolution or synthetic.RESOLUTIONS[options.model]
    return options


if __name__ == "__main__":
    sys.exit(main())
