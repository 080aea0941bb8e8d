"""What `verify.sh` runs: every strategy × precision against fp32 on the CPU, attention kernels, the speed table.

Each case trains a tiny pipeline for 3 steps, is started again to reach 6, and exports. Compared with one CPU process in
fp32, relative: the losses (TOLERANCE), the norms of the gradients in every step (OF_NORMS), and the gradients of the
first 3 steps element by element, of all tensors together (OF_NORMS again) and of the one that differs most (OF_WORST).
`two_ranks` has both ranks on one GPU, over gloo. Cases whose result is there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

import sdtrain.loop
import sdtrain.run  # noqa: F401  (before the forks)
from benchmarks.gpu import attention_kernels, gradients
from benchmarks.gpu.budget import Budget
from sddemo.scenes import caption, render, scenes
from sddemo.tiny_pipeline import make_tiny_pipeline
from sdjob.output.layout import OutputLayout
from sdjob.settings import compatibility
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting import report
from tests.support.worker import flags, in_ranks

Run = Callable[[int, dict[str, Any]], str]  # of so many ranks; returns the reason of a failure
_AT_ONCE = 4  # cases that are started, since each imports for seconds
_GUESSES = {"case": 60.0, "attention": 40.0, "speed": 60.0}  # seconds, before one is measured

TOLERANCE = {"no": 1e-4, "fp16": 1e-2, "bf16": 3e-2}
OF_NORMS = {"no": 1e-3, "fp16": 5e-2, "bf16": 1e-1}
OF_WORST = {"no": 1e-2, "fp16": 1e-1, "bf16": 3e-1}  # a tensor without a gradient is off by 1
STEPS, BATCH = 6, 4
FIRST = STEPS // 2  # steps before the second start
EXTRAS: dict[str, tuple[dict[str, Any], ...]] = {
    "torch_ddp": ({"weights_dtype": "bf16"}, {"mixed_precision": "bf16", "compile": "blocks"}),
    "fsdp": ({"reshard_after_forward": False}, {"cpu_offload": True}),
    "low_level_zero": ({"zero_stage": 2}, {"cpu_offload": True}),
    "gemini": ({"placement": "cpu"}, {"placement": "auto"}),
}


PARTS = (*PLUGINS, "two_ranks", "attention", "speed")
TOGETHER = {"strategies": (*PLUGINS, "two_ranks"), "everything": PARTS}


@dataclass(frozen=True)
class _Call:
    """What all parts of a call share."""

    output: Path  # of the results
    folder: Path  # of inputs and runs
    device_type: str
    budget: Budget
    apart: bool
    quick: bool

    @property
    def forks(self) -> bool:
        return self.device_type == "cpu" and not self.apart


def main() -> int:
    asked = _asked()
    asked.output.mkdir(parents=True, exist_ok=True)
    budget = Budget(asked.seconds, _GUESSES)
    with tempfile.TemporaryDirectory() as folder:
        call = _Call(asked.output, Path(folder), _device(), budget, apart=asked.apart, quick=asked.quick)
        outcomes = [_part(call, part) for part in asked.parts]
    return int(not all(outcomes))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join((*PARTS, *TOGETHER))} [everything]"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=500, help="after which everything has ended [%(default)s]"
    )
    parser.add_argument("--apart", action="store_true", help="start processes on a CPU too, as on a GPU")
    parser.add_argument("--quick", action="store_true", help="fewer cases and a table of two strategies")
    asked = parser.parse_args()
    parts = [each for name in asked.parts or ["everything"] for each in TOGETHER.get(name, (name,))]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: use {', '.join((*PARTS, *TOGETHER))}")
    asked.parts = list(dict.fromkeys(parts))
    return asked


def _part(call: _Call, part: str) -> bool:
    """Run a part and write its result; returns whether nothing is wrong."""
    if part not in ("attention", "speed"):
        return _strategy(call, part)
    if why := call.budget.why_not(part):
        print(f"{part}: not started: {why}", flush=True)
        return True
    if part == "speed":
        return _speed(call)
    try:
        rows = attention_kernels.in_process(call.device_type, call.budget.left)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:  # one crashed or did not end
        print(f"{part}: {error}\n{str(error.stderr or '')[-2000:]}", flush=True)
        return False
    _keep(call, part, rows)
    return True


def _strategy(call: _Call, plugin: str) -> bool:
    """Run all cases of one plugin and write the result after each; returns whether none is wrong."""
    two = plugin == "two_ranks"
    processes = 2 if two else 1 if call.device_type == "cpu" else _count()
    run: Run = _forked if call.forks else partial(_started, call.budget)
    done = _done(call, plugin)

    def row(case: dict[str, Any]) -> dict[str, Any]:
        name = _name(case)
        if name in done:
            return done[name]
        if why := _refused(case, processes):
            return {"case": name, "outcome": "refused", "why": why}
        if why := call.budget.why_not("case"):
            return {"case": name, "outcome": "not started", "why": why}
        wanted = _reference(call.folder / "reference", inputs, run)
        on_one = two and call.device_type == "cuda"
        case_run = partial(_started, call.budget, module="benchmarks.gpu.on_one_gpu") if on_one else run
        with call.budget.row("case"):
            return _case(call.folder / plugin, inputs, wanted, case, processes, case_run)

    inputs = _inputs(call.folder)
    cases = _cases("torch_ddp" if two else plugin, call.device_type, call.quick or two)
    if not call.budget.why_not("case") and any(_name(case) not in done for case in cases):
        _reference(call.folder / "reference", inputs, run)  # before the threads, which share it
    rows: list[dict[str, Any]] = []
    # Started processes import for seconds; forks would inherit threads.
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for each in map(row, cases) if call.forks else threads.map(row, cases):
            rows.append(each)
            _keep(call, plugin, rows)
    return all(row["outcome"] != "wrong" for row in rows)


def _reference(output: Path, inputs: dict[str, Any], run: Run) -> dict[str, Any]:
    """The report of one process on the CPU in fp32, and its gradients; trained once."""
    if not (output / "report.json").exists():
        _trained(output, inputs, 1, {"plugin": "none", "device": "cpu"}, run)
    checkpoint = OutputLayout(output).step_folder(FIRST)
    return {**_report(output), "gradients": gradients.read(checkpoint, gradients.shapes(checkpoint))}


def _forked(size: int, settings: dict[str, Any]) -> str:
    """In forked ranks, which need no imports but must not follow any use of a GPU."""
    codes = in_ranks(size, **settings)
    return "" if codes == [0] * size else f"exit codes {codes}"


def _started(budget: Budget, size: int, settings: dict[str, Any], module: str = "sdtrain") -> str:
    """Under torchrun, as in a job. Raises subprocess.TimeoutExpired when the time of the call is over."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [*command, "-m", module, *flags(**settings)],
        capture_output=True,
        text=True,
        check=False,
        timeout=budget.left,
    )
    return "" if done.returncode == 0 else f"{done.returncode}: {(done.stdout + done.stderr)[-2000:]}"


def _done(call: _Call, part: str) -> dict[str, Any]:
    """The cases of an earlier call that need not be repeated, of today on a GPU."""
    if call.device_type == "cpu":
        return {}
    today = datetime.now(timezone.utc).date().isoformat()
    files = call.output.glob(f"{today}-verify-{call.device_type}-{part}.json")
    rows = (row for file in files for row in json.loads(file.read_text())["rows"])
    return {row["case"]: row for row in rows if row["outcome"] in ("right", "refused")}


def _keep(call: _Call, part: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows so far, so that an early end keeps them."""
    on_gpu = call.device_type == "cuda"
    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "part": part,
        "device": call.device_type,
        "device_name": _ask("torch.cuda.get_device_name()") if on_gpu else f"{os.cpu_count()} CPU cores",
        "processes": 1 if call.device_type == "cpu" else _count(),
        "versions": report.versions(),
        "rows": rows,
    }
    stem = call.output / f"{found['date']}-verify-{call.device_type}-{part}"
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
    """Each precision of the plugin with its extra settings, some of which name the precision."""
    cases = [
        {"plugin": plugin, "mixed_precision": precision, "device": device_type, **extra}
        for precision in PLUGINS[plugin].precisions
        for extra in ({}, *(() if quick else EXTRAS.get(plugin, ())))
        if not (device_type == "cpu" and "compile" in extra)  # minutes
    ]
    return list({_name(case): case for case in cases}.values())


def _name(case: dict[str, Any]) -> str:
    return " ".join(
        str(value) if key in ("plugin", "mixed_precision") else f"{key}={value}"
        for key, value in case.items()
        if key != "device"
    )


def _ranks(case: dict[str, Any], processes: int) -> int:
    return 1 if case["plugin"] == "none" else processes


def _refused(case: dict[str, Any], processes: int) -> str:
    """Why a job with these settings would be refused; empty: it would not."""
    spec = RunSpec(pretrained_model_name_or_path="-", output_dir="-", **case)
    bf16 = None if case["device"] == "cpu" else True
    topology = compatibility.Topology(case["device"], _ranks(case, processes), bf16)
    return "".join(str(problem) for problem in compatibility.problems(spec, topology)[:1])


def _case(
    folder: Path,
    inputs: dict[str, Any],
    wanted: dict[str, Any],
    case: dict[str, Any],
    processes: int,
    run: Run,
) -> dict[str, Any]:
    """Train, resume and export one case, and compare it with the reference."""
    name = _name(case)
    print(name, flush=True)
    size, output = _ranks(case, processes), folder / name.replace(" ", "-").replace("=", "-")
    shapes = {key: tensor.shape for key, tensor in wanted["gradients"].items()}
    try:
        _trained(output, inputs, size, {**case, "max_train_steps": FIRST}, run)
        moments = gradients.read(OutputLayout(output).step_folder(FIRST), shapes)
        found = _trained(output, inputs, size, case, run)
        _check_export(output, inputs)
    except subprocess.TimeoutExpired:
        return {"case": name, "outcome": "not started", "why": "the time was over before it ended"}
    except RuntimeError as error:
        return {"case": name, "outcome": "wrong", "why": str(error)}
    precision = case["mixed_precision"]
    difference = gradients.compared(moments, wanted["gradients"])
    norms = zip(found["gradient_norms"], wanted["gradient_norms"], strict=True)
    off = {
        "loss_off": max(abs(found[key] / wanted[key] - 1) for key in ("mean_loss", "final_loss")),
        "norm_off": max(abs(each / expected - 1) for each, expected in norms),
        "gradients_off": difference.all,
        "worst_off": difference.worst,
    }
    limits = (TOLERANCE[precision], OF_NORMS[precision], OF_NORMS[precision], OF_WORST[precision])
    right = all(each <= limit for each, limit in zip(off.values(), limits, strict=True))
    return {
        "case": name,
        "outcome": "right" if right and found["resumed_from_step"] == FIRST else "wrong",
        **off,
        "worst": difference.name,
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
        "allow_tf32": False,  # which rounds fp32 to 10 bits
        "max_train_steps": STEPS,
        "checkpointing_steps": FIRST,
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


def _speed(call: _Call) -> bool:
    """Write the table of speeds, with and without caches: at the size of SD 1.4 on a GPU, of the tiny model on a CPU.

    `sdtrain.tools.benchmark` writes its result itself, after each row, and keeps the rows of an earlier call."""
    small = ["--model", "tiny", "--batch_sizes", "2", "--steps", "4", "--skip_steps", "1"]
    large = ["--model", "sd14", "--batch_sizes", "8,32", "--steps", "12", "--skip_steps", "4", "--resume"]
    on_gpu = call.device_type == "cuda"
    command = [sys.executable, "-m", "sdtrain.tools.benchmark", *(large if on_gpu else small)]
    command += ["--cached", "both", "--seconds", str(call.budget.left), "--output", str(call.output)]
    command += ["--plugins", "torch_ddp,fsdp"] if call.quick else []
    try:
        return subprocess.run(command, check=False, timeout=call.budget.left).returncode == 0
    except subprocess.TimeoutExpired:
        return True  # the rows so far are written


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
        "| case | outcome | loss off | tolerance | norms off | gradients off | worst tensor | peak (GiB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = (
            f"{row['loss_off']:.1e} | {row['tolerance']:.0e} | {row['norm_off']:.1e} | "
            f"{row['gradients_off']:.1e} | {row['worst_off']:.1e} | {row['peak_memory_bytes'] / 2**30:.2f}"
            if "loss_off" in row
            else f"{row['why'].splitlines()[0]} | – | – | – | – | –"
        )
        lines.append(f"| {row['case']} | {row['outcome']} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
