"""What `verify.sh` runs: every strategy × precision against fp32 on the CPU, attention kernels, the speed table.

Each case trains a tiny pipeline for 3 steps, is started again to reach 6, and exports. Its losses, and the norms of its
gradients in every step, are compared with those of one CPU process in fp32: TOLERANCE and OF_NORMS, relative.
`two_ranks` has both ranks on one GPU, over gloo. Cases whose result is there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import sdtrain.loop
import sdtrain.run  # noqa: F401  (before the forks)
from sddemo.scenes import caption, render, scenes
from sddemo.tiny_pipeline import make_tiny_pipeline
from sdjob.output.layout import OutputLayout
from sdjob.settings import compatibility
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdtrain.model import attention
from sdtrain.reporting import report
from tests.support.worker import flags, in_ranks

Run = Callable[[int, dict[str, Any]], str]
_AT_ONCE = 4  # cases that are started, since each imports for seconds

TOLERANCE = {"no": 1e-4, "fp16": 1e-2, "bf16": 3e-2}
OF_NORMS = {"no": 1e-3, "fp16": 5e-2, "bf16": 1e-1}
STEPS, BATCH = 6, 4
EXTRAS: dict[str, tuple[dict[str, Any], ...]] = {
    "torch_ddp": ({"weights_dtype": "bf16"},),
    "fsdp": ({"reshard_after_forward": False}, {"cpu_offload": True}),
    "low_level_zero": ({"zero_stage": 2}, {"cpu_offload": True}),
    "gemini": ({"placement": "cpu"}, {"placement": "auto"}),
}
# Channels of a head: Stable Diffusion 1.x and 2.x.
HEADS = (40, 64, 80, 160)


PARTS = (*PLUGINS, "two_ranks", "attention", "speed")
TOGETHER = {"strategies": (*PLUGINS, "two_ranks"), "everything": PARTS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join((*PARTS, *TOGETHER))} [everything]"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=500, help="after which no case is started [%(default)s]"
    )
    parser.add_argument("--apart", action="store_true", help="start processes on a CPU too, as on a GPU")
    parser.add_argument("--quick", action="store_true", help="fewer cases and a table of two strategies")
    asked = parser.parse_args()
    parts = [each for name in asked.parts or ["everything"] for each in TOGETHER.get(name, (name,))]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: use {', '.join((*PARTS, *TOGETHER))}")
    asked.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + asked.seconds
    device_type = _device()
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for part in dict.fromkeys(parts):
            if part == "attention":
                _keep(asked.output, device_type, part, _attention(device_type))
            elif part == "speed":
                outcomes.append(_speed(asked.output, device_type, end - time.monotonic(), quick=asked.quick))
            else:
                outcomes.append(_strategy(asked, Path(folder), part, device_type, end))
    return int(not all(outcomes))


def _strategy(asked: argparse.Namespace, folder: Path, plugin: str, device_type: str, end: float) -> bool:
    """Run all cases of one plugin and write the result after each; returns whether none is wrong."""
    inputs = _inputs(folder)
    two = plugin == "two_ranks"
    processes = 2 if two else 1 if device_type == "cpu" else _count()
    run = _forked if device_type == "cpu" and not asked.apart else _started
    if two and run is _started and device_type == "cuda":
        run = _on_one_gpu
    found = _reference(folder / "reference", inputs, _forked if run is _forked else _started)
    done = _done(asked.output, device_type, plugin)

    def row(case: dict[str, Any]) -> dict[str, Any]:
        if _name(case) in done:
            return done[_name(case)]
        if time.monotonic() > end:
            return {"case": _name(case), "outcome": "not started", "why": f"{asked.seconds:.0f} s are over"}
        return _case(folder, inputs, found, case, processes, device_type, run)

    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(
        _AT_ONCE
    ) as threads:  # started processes import for seconds; forks would inherit threads
        cases = _cases("torch_ddp" if two else plugin, device_type, asked.quick or two)
        one_by_one = run is _forked
        for each in map(row, cases) if one_by_one else threads.map(row, cases):
            rows.append(each)
            _keep(asked.output, device_type, plugin, rows)
    return all(row["outcome"] != "wrong" for row in rows)


def _reference(output: Path, inputs: dict[str, Any], run: Run) -> dict[str, Any]:
    """The report of one process on the CPU in fp32; computed once."""
    if (output / "report.json").exists():
        return _report(output)
    return _trained(output, inputs, 1, {"plugin": "none", "device": "cpu"}, run)


def _forked(size: int, settings: dict[str, Any]) -> str:
    """Run forked ranks, which need no imports but must not follow any use of a GPU; returns the reason of a failure."""
    codes = in_ranks(size, **settings)
    return "" if codes == [0] * size else f"exit codes {codes}"


def _on_one_gpu(size: int, settings: dict[str, Any]) -> str:
    return _started(size, settings, "benchmarks.gpu.on_one_gpu")


def _started(size: int, settings: dict[str, Any], module: str = "sdtrain") -> str:
    """The same under torchrun, as in a job."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [*command, "-m", module, *flags(**settings)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"{done.returncode}: {(done.stdout + done.stderr)[-2000:]}"


def _done(output: Path, device_type: str, part: str) -> dict[str, Any]:
    """The cases of an earlier call that need not be repeated, of today on a GPU."""
    if device_type == "cpu":
        return {}
    files = output.glob(f"{datetime.now(timezone.utc).date().isoformat()}-verify-{device_type}-{part}.json")
    rows = (row for file in files for row in json.loads(file.read_text())["rows"])
    return {row["case"]: row for row in rows if row["outcome"] in ("right", "refused")}


def _keep(output: Path, device_type: str, part: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows so far, so that an early end keeps them."""
    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "part": part,
        "device": device_type,
        "device_name": _ask("torch.cuda.get_device_name()")
        if device_type == "cuda"
        else f"{os.cpu_count()} CPU cores",
        "processes": 1 if device_type == "cpu" else _count(),
        "versions": report.versions(),
        "rows": rows,
    }
    stem = output / f"{found['date']}-verify-{device_type}-{part}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".md").write_text(_page(found))


@cache
def _ask(expression: str) -> str:
    """Evaluate in a separate process: this one forks, and must not start to use a GPU."""
    code = f"import torch; print({expression})"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def _device() -> str:
    return "cuda" if _ask("torch.cuda.is_available()") == "True" else "cpu"


def _count() -> int:
    return int(_ask("torch.cuda.device_count()"))


def _inputs(folder: Path) -> dict[str, Any]:
    data, model = folder / "data", folder / "model"
    if data.exists():
        return {"pretrained_model_name_or_path": model, "train_data_dir": data}
    data.mkdir()
    rows = []
    for number, scene in enumerate(scenes(8, seed=0)):
        render(scene).save(data / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption(scene)}))
    (data / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return {"pretrained_model_name_or_path": make_tiny_pipeline(model), "train_data_dir": data}


def _cases(plugin: str, device_type: str, quick: bool) -> list[dict[str, Any]]:
    return [
        {"plugin": plugin, "mixed_precision": precision, "device": device_type, **extra}
        for precision in PLUGINS[plugin].precisions
        for extra in ({}, *(() if quick else EXTRAS.get(plugin, ())))
    ]


def _name(case: dict[str, Any]) -> str:
    return " ".join(
        str(value) if key in ("plugin", "mixed_precision") else f"{key}={value}"
        for key, value in case.items()
        if key != "device"
    )


def _case(
    folder: Path,
    inputs: dict[str, Any],
    reference: dict[str, Any],
    case: dict[str, Any],
    processes: int,
    device_type: str,
    run: Run,
) -> dict[str, Any]:
    """Train, resume and export one case, and compare it."""
    name = _name(case)
    print(name, flush=True)
    row: dict[str, Any] = {"case": name}
    spec = RunSpec(pretrained_model_name_or_path="-", output_dir="-", **case)
    size = 1 if case["plugin"] == "none" else processes
    if problems := compatibility.problems(
        spec, compatibility.Topology(device_type, size, None if device_type == "cpu" else True)
    ):
        return {**row, "outcome": "refused", "why": str(problems[0])}
    output = folder / name.replace(" ", "-").replace("=", "-")
    try:
        _trained(output, inputs, size, {**case, "max_train_steps": STEPS // 2}, run)
        found = _trained(output, inputs, size, case, run)
        _check_export(output, inputs)
    except RuntimeError as error:
        return {**row, "outcome": "wrong", "why": str(error)}
    precision = case["mixed_precision"]
    off = max(abs(found[key] / reference[key] - 1) for key in ("mean_loss", "final_loss"))
    norms = zip(found["gradient_norms"], reference["gradient_norms"], strict=True)
    norm_off = max(abs(each / wanted - 1) for each, wanted in norms)
    right = (
        off <= TOLERANCE[precision]
        and norm_off <= OF_NORMS[precision]
        and found["resumed_from_step"] == STEPS // 2
    )
    return {
        **row,
        "outcome": "right" if right else "wrong",
        "loss_off": off,
        "norm_off": norm_off,
        "tolerance": TOLERANCE[precision],
        "peak_memory_bytes": found["peak_memory_bytes"],
    }


def _trained(
    output: Path, inputs: dict[str, Any], size: int, case: dict[str, Any], run: Run
) -> dict[str, Any]:
    settings = {
        "resolution": 32,
        "train_batch_size": BATCH // size,
        "use_ema": True,
        "max_train_steps": STEPS,
        "logging_steps": 1,
    }
    if failure := run(size, {**inputs, "output_dir": output, **settings, **case}):
        raise RuntimeError(failure)
    return _report(output)


def _report(output: Path) -> dict[str, Any]:
    """The report of a run, with the norm of the gradients in each of its steps."""
    values: dict[str, Any] = json.loads((output / "report.json").read_text())
    lines = map(json.loads, OutputLayout(output).metrics.read_text().splitlines())
    norms = {line["step"]: line["grad_norm"] for line in lines if "grad_norm" in line}
    return {**values, "gradient_norms": [norms[step] for step in sorted(norms)]}


def _check_export(output: Path, inputs: dict[str, Any]) -> None:
    file = "unet/diffusion_pytorch_model.safetensors"
    with (
        safe_open(output / "checkpoint" / file, "pt") as found,
        safe_open(inputs["pretrained_model_name_or_path"] / file, "pt") as source,
    ):
        if set(found.keys()) != set(source.keys()):
            raise RuntimeError("the exported U-Net has other weights than its source")


def _attention(device_type: str) -> list[dict[str, Any]]:
    """Difference of each backend from math in fp32, in a process that may use the GPU; or why it cannot run."""
    code = "import json; from benchmarks.gpu import verify; print(json.dumps(verify.attention_rows({!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code.format(device_type)], capture_output=True, text=True, check=True
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def attention_rows(device_type: str) -> list[dict[str, Any]]:
    device = torch.device(device_type)
    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    rows = []
    for size in HEADS:
        generator = torch.Generator().manual_seed(size)
        q, k, v = (torch.randn(2, 8, 256, size, generator=generator).to(device, dtype) for _ in range(3))
        with attention.chosen("math"):
            wanted = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
        for name in ("flash", "cudnn", "efficient", "xformers"):
            row: dict[str, Any] = {
                "backend": name,
                "head": size,
                "why_not": attention.failure(name, size, device, dtype),
            }
            if not row["why_not"]:
                if name == "xformers":
                    from xformers.ops import memory_efficient_attention

                    found = memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(
                        1, 2
                    )
                else:
                    with attention.chosen(name):
                        found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
                row["off"] = float((found.float() - wanted).norm() / wanted.norm())
            rows.append(row)
    return rows


def _speed(output: Path, device_type: str, seconds: float, *, quick: bool) -> bool:
    """Write the table of speeds, with and without caches: at the size of SD 1.4 on a GPU, of the tiny model on a CPU.

    `sdtrain.tools.benchmark` writes its result itself, after each row."""
    small = ["--model", "tiny", "--batch_sizes", "2", "--steps", "4", "--skip_steps", "1"]
    large = ["--model", "sd14", "--batch_sizes", "8,32", "--steps", "12", "--skip_steps", "4"]
    command = [sys.executable, "-m", "sdtrain.tools.benchmark", *(large if device_type == "cuda" else small)]
    command += ["--cached", "both", "--seconds", str(max(seconds, 0)), "--output", str(output)]
    done = subprocess.run([*command, *(("--plugins", "torch_ddp,fsdp") if quick else ())], check=False)
    return done.returncode == 0


def _page(found: dict[str, Any]) -> str:
    lines = [
        f"# {found['part']} on {found['device_name']}, {found['date']}",
        "",
        f"{found['processes']} process(es); "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "",
    ]
    if found["part"] == "attention":
        lines += ["| attention | head | off from math in fp32 |", "|---|---|---|"]
        for row in found["rows"]:
            shown = f"{row['off']:.1e}" if "off" in row else row["why_not"].splitlines()[0][:80]
            lines.append(f"| {row['backend']} | {row['head']} | {shown} |")
        return "\n".join([*lines, ""])
    lines += [
        "| case | outcome | loss off | tolerance | norms off | peak (GiB) |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = (
            f"{row['loss_off']:.1e} | {row['tolerance']:.0e} | {row['norm_off']:.1e} | "
            f"{row['peak_memory_bytes'] / 2**30:.2f}"
            if "loss_off" in row
            else f"{row['why'].splitlines()[0]} | – | – | –"
        )
        lines.append(f"| {row['case']} | {row['outcome']} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
