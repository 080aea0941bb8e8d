"""The preflight's estimate of memory beside the peak of a traced step, on no GPU: `python benchmarks/gpu/memory.py`.

Stable Diffusion 1.4, 2.1 and XL, full and LoRA, with and without gradient checkpointing, in bf16 at their own
resolution; nothing is cached. The estimate should be within 10 % of the peak of all tensors, which
sdtrain/tools/step_trace.py follows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdjob.model import memory_estimate
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.weights import Part, Tensor
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting import report
from sdtrain.tools import step_trace, synthetic
from sdtrain.tools.step_trace import StepTrace

GPU = Topology("cuda", 1, bf16=True)
TOLERANCE = 0.1


@dataclass(frozen=True)
class Case:
    """A run that is estimated and traced."""

    model: str
    lora_rank: int
    gradient_checkpointing: bool
    train_batch_size: int
    weights_dtype: str = "fp32"

    @property
    def spec(self) -> RunSpec:
        settings: dict[str, Any] = {
            **{name: value for name, value in asdict(self).items() if name != "model"},
            "recipe": "text_to_image",
            "resolution": synthetic.RESOLUTIONS[self.model],
            "mixed_precision": "bf16",
            "plugin": "none",
        }
        return RunSpec(pretrained_model_name_or_path="-", output_dir="-", **settings)


CASES = tuple(
    Case(model, lora_rank, checkpointing, batch, weights)
    for model, (lora_rank, weights), checkpointing, batch in itertools.product(
        ("sd14", "sd21", "sdxl"), ((0, "fp32"), (0, "bf16"), (8, "fp32")), (False, True), (1, 4)
    )
)


def traced(case: Case) -> StepTrace:
    return step_trace.trace(case.spec, case.model, cached=False)


def compared(case: Case, found: StepTrace) -> dict[str, Any]:
    """Bytes: estimated and traced; and how far the estimate is off."""
    need = memory_estimate.estimate(case.spec, folder(case.model), GPU)
    assert need is not None
    return {
        **asdict(case),
        "estimate": need.total,
        "peak": found.peak,
        "off": need.total / found.peak - 1,
        "peaks": found.peaks,
        "parts": str(need),
    }


def folder(model: str) -> PipelineFolder:
    """A pipeline of this size, as the launcher knows it from its headers."""
    parts = synthetic.parts(model, "no", torch.device("meta"), lora=False)
    modules = {**parts.trainable, "vae": parts.vae}
    return PipelineFolder(
        Path(model),
        parts.architecture.facts.class_name,
        "epsilon",
        {name: _part(name, module, synthetic.config(model, name)) for name, module in modules.items()},
    )


def _part(name: str, module: nn.Module, config: dict[str, Any]) -> Part:
    shapes = {key: tuple(parameter.shape) for key, parameter in module.named_parameters()}
    count = sum(map(math.prod, shapes.values()))
    tensors = {key: Tensor(shape, Path(name)) for key, shape in shapes.items()}
    return Part(Path(name), "", num_bytes=4 * count, num_parameters=count, config=config, tensors=tensors)


def _page(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"# Memory of a device: the preflight's estimate and the peak of a traced step, {_today()}"
    yield ""
    yield "No GPU: the peak is that of all tensors of one step, traced without their content."
    yield "Full fine-tuning with AdamW, LoRA of rank 8; bf16, 512 px (2.1: 768, XL: 1024); VAE and text encoders on the"
    yield "device, nothing cached. Workspaces, fragmentation and the CUDA context come on top of both."
    yield ""
    yield ", ".join(f"{name} {version}" for name, version in report.versions().items())
    yield ""
    yield "| model | trained | weights | checkpointing | batch | estimate (GB) | peak (GB) | off |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        trained = "LoRA" if row["lora_rank"] else "full"
        checkpointing = "yes" if row["gradient_checkpointing"] else "no"
        yield (
            f"| {row['model']} | {trained} | {row['weights_dtype']} | {checkpointing} | {row['train_batch_size']} | "
            f"{row['estimate'] / 1e9:.2f} | {row['peak'] / 1e9:.2f} | {row['off']:+.1%} |"
        )
    yield ""


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    stem = parser.parse_args().output / f"{_today()}-memory"
    rows: list[dict[str, Any]] = []
    for case in CASES:
        rows.append(compared(case, traced(case)))
        stem.with_suffix(".json").write_text(
            json.dumps({"versions": report.versions(), "rows": rows}, indent=1) + "\n"
        )
        stem.with_suffix(".md").write_text("\n".join(_page(rows)))
    return int(any(abs(row["off"]) > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
