"""What a step should take on one GPU, from its trace: `python benchmarks/gpu/prediction.py` writes predicted.json.

The bound is the sum of the kernels, each at the rate of its kind or of the memory, whichever is slower; attention is
padded to the head sizes that its kernels have. A good program reaches two thirds of it: NVIDIA's own entry with Stable
Diffusion 2 in MLPerf 4.0 reaches 68 % (128 images/s on an H200).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sdjob.settings.run_spec import RunSpec
from sdtrain.tools import step_trace, synthetic
from sdtrain.tools.step_trace import Kernels, Kind, StepTrace

FILE = Path(__file__).with_name("predicted.json")
REACHED = 0.68  # of the bound
_MATRIX, _MEMORY = (
    650e12,
    4.0e12,
)  # FLOP/s in bf16 and bytes/s of an H200, as measured in large products and copies
_FASTER = 0.5  # bytes of elementwise kernels that fusing them leaves
# Attention kernels: FLOP/s forward and backward, and the multiple that a head is padded to (0: PyTorch's own sizes).
_ATTENTION = {"flash": (330e12, 290e12, 0), "cudnn": (500e12, 430e12, 0), "fa4": (500e12, 430e12, 16)}
_SIZES = (64, 96, 128, 160, 192, 256)
BATCHES = (1, 8, 32, 64, 96, 128)


@dataclass(frozen=True)
class Cost:
    """Seconds of one step on the bound, FLOPs, and bytes at the peak."""

    matrix: float
    attention: dict[str, float]  # by kernel
    elementwise: float  # of the network
    update: float
    flops: int
    peak: int

    def bound(self, batch: int, attention: str, *, compiled: bool) -> float:
        """images/s"""
        elementwise = self.elementwise * (_FASTER if compiled else 1)
        return batch / (self.matrix + self.attention[attention] + elementwise + self.update)


def key(model: str, weights: str, batch: int, lora_rank: int = 0) -> str:
    return f"{model} {'lora' if lora_rank else 'full'} {weights} {batch}"


def read() -> dict[str, Cost]:
    values = json.loads(FILE.read_text()) if FILE.exists() else {}
    return {name: Cost(**cost) for name, cost in values.items()}


def cost(found: StepTrace) -> Cost:
    """The sums over all kernels of a step with latents and prompts from a cache."""
    network = {kind: each for kind, each in found.kernels.items() if kind.phase != "update"}
    attention = {kind: each for kind, each in network.items() if kind.head}
    matrix = {kind: each for kind, each in network.items() if each.flops and not kind.head}
    others = (each for kind, each in network.items() if kind not in attention and kind not in matrix)
    return Cost(
        matrix=sum(max(each.flops / _MATRIX, each.moved / _MEMORY) for each in matrix.values()),
        attention={name: _attention(attention, *how) for name, how in _ATTENTION.items()},
        elementwise=sum(each.moved for each in others) / _MEMORY,
        update=found.total("update").moved / _MEMORY,
        flops=found.total(*step_trace.PASSES).flops,
        peak=found.peak,
    )


def _attention(kernels: Mapping[Kind, Kernels], forward: float, backward: float, multiple: int) -> float:
    seconds = 0.0
    for kind, each in kernels.items():
        padded = (
            -(-kind.head // multiple) * multiple if multiple else min(s for s in _SIZES if s >= kind.head)
        )
        rate = backward if "backward" in kind.name else forward
        seconds += max(each.flops * padded / kind.head / rate, each.moved / _MEMORY)
    return seconds


def spec(model: str, weights: str, batch: int, lora_rank: int = 0) -> RunSpec:
    return RunSpec.model_validate(
        {
            "pretrained_model_name_or_path": "-",
            "output_dir": "-",
            "recipe": "text_to_image",
            "plugin": "none",
            "mixed_precision": "bf16",
            "resolution": synthetic.RESOLUTIONS[model],
            "weights_dtype": weights,
            "train_batch_size": batch,
            "lora_rank": lora_rank,
        }
    )


def main() -> int:
    cases = [(model, "bf16", batch, 0) for model in ("sd14", "sd2") for batch in BATCHES]
    cases += [("sd14", "fp32", 8, 0), ("sd14", "fp32", 64, 0), ("sd14", "fp32", 64, 8)]
    costs = {}
    for case in cases:
        costs[key(*case)] = asdict(cost(step_trace.trace(spec(*case), case[0], cached=True)))
        FILE.write_text(json.dumps(costs, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
