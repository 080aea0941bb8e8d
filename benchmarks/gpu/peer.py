"""The unmodified example script of diffusers on one GPU, with its own best flags, timed by benchmarks/peer/probe.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import too_late

_PROBE = Path(__file__).parents[1] / "peer" / "probe.py"
_STEPS, _SKIPPED = 16, 6
_SCRIPT = "train_text_to_image.py"
_BEST = ("--mixed_precision=bf16", "--allow_tf32", "--dataloader_num_workers=12")


@dataclass(frozen=True)
class Row:
    """A batch and flags; the script has no caches, so that VAE and text encoder run in every step."""

    name: str
    batch: int
    flags: tuple[str, ...] = ()


def script() -> Path:
    """Where carry.sh put the script, or PEER_SCRIPT."""
    return Path(os.environ.get("PEER_SCRIPT") or Path(__file__).parents[2] / ".carry" / _SCRIPT)


def rows(*, on_gpu: bool) -> Iterator[Row]:
    if not on_gpu:
        yield Row("tiny", 2)
        return
    yield Row("bf16, TF32", 32, _BEST)
    yield Row("bf16, TF32", 64, _BEST)
    yield Row("bf16, TF32, 8-bit Adam", 64, (*_BEST, "--use_8bit_adam"))


def measure(row: Row, seconds: float) -> dict[str, Any]:
    """images/s of the steps after the first, measured within so many seconds."""
    if not script().is_file():
        return {"outcome": "refused", "why": f"no {_SCRIPT} (benchmarks/gpu/carry.sh fetches it)"}
    end, tiny = time.monotonic() + seconds, not row.flags
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model", Path(folder) / "data"
        code = "from benchmarks.gpu import peer; import sys; peer.write(*sys.argv[1:])"
        subprocess.run(
            [sys.executable, "-c", code, str(model), str(data), "tiny" if tiny else "sd14"], check=True
        )
        flags = [
            f"--pretrained_model_name_or_path={model}",
            f"--train_data_dir={data}",
            f"--output_dir={folder}/output",
            f"--resolution={32 if tiny else 512}",
            f"--train_batch_size={row.batch}",
            f"--max_train_steps={_STEPS}",
            "--checkpointing_steps=1000000",
            *row.flags,
        ]
        command = [sys.executable, str(_PROBE), f"{folder}/times", str(script()), *flags]
        limit, left = 900 if tiny else 200, max(1.0, end - time.monotonic())
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=min(limit, left)
            )
        except subprocess.TimeoutExpired:
            return too_late(limit, left)
        file = Path(folder) / "times-0.json"
        notes = json.loads(file.read_text()) if file.exists() else {"ends": []}
    ends = [wall for wall, _ in notes["ends"]]
    if len(ends) < _STEPS:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"outcome": "oom" if "out of memory" in done.stderr else "failed", "why": why}
    seconds = (ends[-1] - ends[_SKIPPED - 1]) / (len(ends) - _SKIPPED)
    return {
        "outcome": "ok",
        "images_per_second": row.batch / seconds,
        "peak_memory_bytes": notes["device_peak_bytes"] or notes["peak_bytes"],
    }


def write(model: str, data: str, size: str) -> None:
    """A pipeline of this size with random weights, and 256 images with captions."""
    import torch
    from PIL import Image

    from sdtrain.tools import synthetic

    parts = synthetic.parts(
        size, "no", torch.device("cuda" if torch.cuda.is_available() else "cpu"), lora=False
    )
    parts.architecture.assemble(parts).save_pretrained(model)
    Path(data).mkdir()
    side = synthetic.RESOLUTIONS[size]
    lines = []
    for number in range(256):
        noise = torch.randint(256, (side, side, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(Path(data) / f"{number}.jpg")
        lines.append(json.dumps({"file_name": f"{number}.jpg", "text": "an image"}))
    (Path(data) / "metadata.jsonl").write_text("\n".join(lines) + "\n")
