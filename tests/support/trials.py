"""Strategies on a tiny U-Net, several in one pair of forked processes: their steps, state and checkpoints."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig

from sdjob.settings.run_spec import RunSpec
from sdtrain import strategies
from sdtrain.architectures.stable_diffusion import StableDiffusion
from sdtrain.model.load import DTYPES
from sdtrain.model.trainable_model import TrainableModel
from sdtrain.optim.ema import Ema
from sdtrain.strategies.base import OptimSpec, ParameterGroup
from tests.support import colossal
from tests.support.worker import snapshot

CLIP, STEPS, SAVED = 0.05, 3, 2
BATCH, ACCUMULATION = 4, 2
CPU = torch.device("cpu")
# With so large an epsilon AdamW's update is proportional to the gradient: wrong clipping or scaling shows, and
# rounding is not amplified where a gradient is nearly zero.
OPTIM = OptimSpec(
    (ParameterGroup("", 10.0),), (0.9, 0.99), weight_decay=1e-3, epsilon=1.0, max_grad_norm=CLIP
)

VARIANTS: dict[str, dict[str, Any]] = {
    "torch_ddp": {"plugin": "torch_ddp"},
    "torch_ddp_bf16": {"plugin": "torch_ddp", "mixed_precision": "bf16"},
    "torch_ddp_bf16_weights": {"plugin": "torch_ddp", "mixed_precision": "bf16", "weights_dtype": "bf16"},
    "torch_ddp_bf16_reduced": {
        "plugin": "torch_ddp",
        "mixed_precision": "bf16",
        "weights_dtype": "bf16",
        "reduce_dtype": "bf16",
    },
    "torch_ddp_fp16": {"plugin": "torch_ddp_fp16", "mixed_precision": "fp16"},
    "fsdp": {"plugin": "fsdp"},
    "fsdp_whole_weights": {"plugin": "fsdp", "reshard_after_forward": False},
    "fsdp_offload": {"plugin": "fsdp", "cpu_offload": True},
    "fsdp_bf16": {"plugin": "fsdp", "mixed_precision": "bf16"},
    "fsdp_fp16": {"plugin": "fsdp", "mixed_precision": "fp16"},
    "zero1": {"plugin": "low_level_zero"},
    "zero2": {"plugin": "low_level_zero", "zero_stage": 2},
    "zero2_offload": {"plugin": "low_level_zero", "zero_stage": 2, "cpu_offload": True},
    "zero1_bf16": {"plugin": "low_level_zero", "mixed_precision": "bf16"},
    "zero1_fp16": {"plugin": "low_level_zero", "mixed_precision": "fp16"},
    "gemini_cuda": {"plugin": "gemini", "mixed_precision": "bf16"},
    "gemini_cuda_fp16": {"plugin": "gemini", "mixed_precision": "fp16"},
    "gemini_cpu": {"plugin": "gemini", "mixed_precision": "bf16", "placement": "cpu"},
    "gemini_cpu_fp16": {"plugin": "gemini", "mixed_precision": "fp16", "placement": "cpu"},
    "gemini_auto": {"plugin": "gemini", "mixed_precision": "bf16", "placement": "auto"},
    "gemini_auto_fp16": {"plugin": "gemini", "mixed_precision": "fp16", "placement": "auto"},
    "fsdp_lora": {"plugin": "fsdp", "mixed_precision": "bf16", "lora_rank": 2},
    "zero1_lora": {"plugin": "low_level_zero", "mixed_precision": "no", "lora_rank": 2},
    "gemini_lora": {"plugin": "gemini", "mixed_precision": "bf16", "lora_rank": 2},
}


def spec_of(variant: str, **more: Any) -> RunSpec:
    settings = {"mixed_precision": "no", "gradient_accumulation_steps": ACCUMULATION, **VARIANTS[variant]}
    return RunSpec(pretrained_model_name_or_path="/m", output_dir="/o", **{**settings, **more})


class Trial:
    """One strategy around a fresh copy of the U-Net, with an EMA of its weights."""

    def __init__(self, unet: Path, spec: RunSpec) -> None:
        from diffusers import UNet2DConditionModel

        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.unet = UNet2DConditionModel.from_pretrained(unet)
        if spec.lora_rank:
            _add_lora(self.unet, spec)
        self.strategy = strategies.create(spec, CPU)
        self.strategy.prepare(TrainableModel(StableDiffusion(), self.unet).train(), OPTIM)
        self.ema = Ema(self.strategy.masters(), decay=0.5)

    def step(self, number: int) -> tuple[float, float]:
        """Loss, mean over ranks and batches, and gradient norm of one optimizer step."""
        total = torch.zeros((), dtype=torch.float64)
        for micro in range(ACCUMULATION):
            part = slice(self.rank * BATCH // self.world, (self.rank + 1) * BATCH // self.world)
            latents, timesteps, hidden, noise = (tensor[part] for tensor in batch(number, micro))
            with self.strategy.accumulate(last=micro == ACCUMULATION - 1):
                with self.strategy.autocast():
                    noise_pred = self.strategy.model(latents, timesteps, {"hidden_states": hidden})
                loss = (noise_pred.float() - noise).square().mean() / ACCUMULATION
                self.strategy.backward(loss)
            total += loss.detach().double()
        norm = self.strategy.step(1.0)
        self.ema.update(self.strategy.masters())
        if self.world > 1:
            dist.all_reduce(total)
        return float(total) / self.world, float(norm)

    def whole(self) -> dict[str, dict[str, torch.Tensor]]:
        """Masters and EMA, whole, on rank 0."""
        shards = {"master": self.strategy.masters(), "ema": self.ema.shards}
        whole = {name: self.strategy.full_state(values) for name, values in shards.items()}
        # Unsharded masters on a CPU are the weights themselves, and keep changing.
        return {name: {key: tensor.clone() for key, tensor in state.items()} for name, state in whole.items()}

    def first_moment_norm(self) -> float:
        """Norm of AdamW's first moment over all weights: after one step, (1 - beta1) × the norm of the gradient."""
        shards = self.strategy._tables(None)["exp_avg"].values()
        square = sum(shard.double().square().sum() for shard in shards)
        dist.all_reduce(square)
        return float(square) ** 0.5

    def predicted(self) -> torch.Tensor:
        """The U-Net's prediction with the EMA, called once on rank 1 and three times on rank 0."""
        latents, timesteps, hidden, _ = batch(99, 0)
        dtype = next(self.unet.parameters()).dtype
        with self.strategy.applied(self.ema.shards), torch.inference_mode():
            for _ in range(1 if self.rank else 3):
                found = self.unet(latents.to(dtype), timesteps, hidden.to(dtype)).sample
        return found.float().as_subclass(torch.Tensor)


def _add_lora(unet: Any, spec: RunSpec) -> None:
    """Add a LoRA as the worker does: the base in the compute type, the adapter in fp32."""
    unet.to(DTYPES[spec.mixed_precision]).requires_grad_(False)
    torch.manual_seed(0)
    unet.add_adapter(
        LoraConfig(r=spec.lora_rank, init_lora_weights="gaussian", target_modules=["to_q", "to_v"])
    )
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def batch(step: int, micro: int) -> tuple[torch.Tensor, ...]:
    """The batch of all ranks: noisy latents in channels_last, as a VAE gives them, timesteps, text, and the noise."""
    generator = torch.Generator().manual_seed(100 * step + micro)
    latents = torch.randn(BATCH, 4, 8, 8, generator=generator)
    return (
        latents.to(memory_format=torch.channels_last),
        torch.randint(1000, (BATCH,), generator=generator),
        torch.randn(BATCH, 16, 32, generator=generator),
        torch.randn(BATCH, 4, 8, 8, generator=generator),
    )


def trial(unet: Path, folder: Path, variant: str) -> dict[str, Any]:
    """Train, save midway, and resume from there with a fresh copy."""
    first = Trial(unet, spec_of(variant))
    found: dict[str, Any] = {"start": first.whole()["master"], "steps": []}
    for number in range(1, SAVED + 1):
        found["steps"].append(first.step(number))
        if number == 1 and hasattr(first.strategy, "_tables"):
            found["moment"] = first.first_moment_norm()
    if first.rank == 0:
        (folder / variant).mkdir()
        (folder / f"{variant}_background").mkdir()
    dist.barrier()
    first.strategy.writer(first.ema.shards, background=False)(folder / variant)
    found["saved"] = first.whole()
    write = first.strategy.writer(first.ema.shards, background=True)
    with ThreadPoolExecutor(1) as thread:  # during everything that follows
        written = thread.submit(write, folder / f"{variant}_background")
        found["predicted"] = first.predicted()
        found["steps"].append(first.step(STEPS))
        found["end"] = first.whole()
        written.result()
    dist.barrier()
    found["written"] = {name: data_of(folder / name) for name in (variant, f"{variant}_background")}
    again = Trial(unet, spec_of(variant))
    load(again, folder / variant)
    found["again"] = again.step(STEPS)
    found["again_end"] = again.whole()
    return found


def data_of(folder: Path) -> dict[str, str]:
    """The hash of every file except the metadata of the shards, in which each save has a different name."""
    return {name: of for name, of in snapshot(folder).items() if not name.endswith(".metadata")}


def load(into: Trial, folder: Path) -> None:
    into.strategy.load(folder, into.ema.shards)
    into.ema.resume(updates=SAVED)


def overflowing(unet: Path, variant: str) -> list[tuple[float, float]]:
    """Steps that start with a loss scale far too large for fp16, until one is taken."""
    tried = Trial(unet, spec_of(variant))
    for name in ("mixed_precision_mixin", "mix_precision_mixin"):
        if mixin := getattr(tried.strategy._optimizer, name, None):
            mixin.grad_scaler._scale.fill_(2.0**19)
    return [tried.step(number) for number in range(1, 9)]


def discarding(unet: Path, variant: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """The first step of a trial that has discarded a step before, and of one that has not."""
    found = []
    for discards in (True, False):
        tried = Trial(unet, spec_of(variant))
        if discards:
            take, tried.strategy.step = tried.strategy.step, lambda factor: torch.zeros(())
            tried.step(7)
            tried.strategy.step = take
            tried.strategy.discard()
        found.append(tried.step(1))
    return found[0], found[1]


def converted(unet: Path, folder: Path, variant: str, source: str) -> dict[str, dict[str, torch.Tensor]]:
    """The state of a strategy that starts from another one's checkpoint, and its next step."""
    other = Trial(unet, spec_of(variant))
    load(other, folder / source)
    return {**other.whole(), "step": other.step(STEPS)}  # type: ignore[dict-item]


def in_ranks(size: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> Any:
    """Run `work` in `size` forked processes with Colossal-AI's test accelerator; returns the result of rank 0."""
    import sdtrain.strategies.colossalai  # noqa: F401  (once, before the forks)

    gc.collect()  # as in `tests.support.worker.forked`
    context = multiprocessing.get_context("fork")
    store = str(folder / f"store-{work.__name__}-{size}")
    processes = [context.Process(target=_rank, args=(r, size, store, work, arguments)) for r in range(size)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(900)
        assert [process.exitcode for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
            process.join()
    return torch.load(f"{store}-result.pt", weights_only=True)


def _rank(rank: int, size: int, store: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        with _group(rank, size, store):
            colossal.install()
            result = work(*arguments)
            if rank == 0:
                torch.save(result, f"{store}-result.pt")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


@contextmanager
def _group(rank: int, size: int, store: str) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    yield
    dist.barrier()
    dist.destroy_process_group()
