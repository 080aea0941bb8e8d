"""Every strategy against one process in fp32: losses, clipping, checkpoints, EMA, and one another's checkpoints.

Tests of `base.py`, `fsdp.py`, `colossalai.py`, `colossalai_zero.py` and `colossalai_gemini.py`.

Tolerances, relative: fp32 1e-5; fp16 5e-3, bf16 2e-2 for losses and norms. Colossal-AI's strategies are the real ones,
on CPU processes that it takes for CUDA devices (tests/support/colossal.py). Resuming is exact everywhere.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from sdjob.settings.run_spec import RunSpec
from sdtrain import strategies
from tests.support import trials
from tests.support.trials import CLIP, STEPS, VARIANTS, Trial, spec_of

HOME = Path(__file__).parents[3]
TOLERANCE = {"no": 1e-5, "fp16": 5e-3, "bf16": 2e-2}
SHORT = (
    "torch_ddp",
    "torch_ddp_bf16_weights",
    "fsdp",
    "zero2_offload",
    "gemini_cuda",
    "gemini_cpu_fp16",
    "gemini_auto",
)
CONVERSIONS = [
    ("fsdp", "torch_ddp"),
    ("gemini_cuda", "torch_ddp"),
    ("torch_ddp", "gemini_cuda"),
    ("zero2_offload", "fsdp"),
    ("gemini_auto", "zero2_offload"),
    ("zero1", "torch_ddp"),
    ("torch_ddp", "fsdp_bf16"),
    ("zero2", "fsdp_bf16"),
    ("fsdp_offload", "gemini_cuda_fp16"),
]


def marked(names):
    """All variants, or pairs of them, as parameters; those beyond the short list are long."""
    return [
        pytest.param(
            name,
            id=name if isinstance(name, str) else "_from_".join(name),
            marks=[] if _involved(name) <= set(SHORT) else [pytest.mark.long],
        )
        for name in names
    ]


def _involved(name):
    return {name} if isinstance(name, str) else set(name)


def tolerance(variant: str) -> float:
    return TOLERANCE[spec_of(variant).mixed_precision]


def work(unet, folder, variants):
    found = {variant: trials.trial(unet, folder, variant) for variant in variants}
    for pair in CONVERSIONS:
        if set(pair) <= set(variants):
            found[pair] = trials.converted(unet, folder, *pair)
    found["overflow", "gemini_cpu_fp16"] = trials.overflowing(unet, "gemini_cpu_fp16")
    found["discard"] = {name: trials.discarding(unet, name) for name in ("zero2_offload", "gemini_cuda")}
    return found


class Found(dict):
    """Results of the trials; each of the two sets of variants is tried once, in one pair of processes."""

    def __init__(self, unet, folder):
        super().__init__()
        self.unet, self.folder = unet, folder

    def __missing__(self, key):
        variants = tuple(VARIANTS) if _involved(key) & set(VARIANTS) - set(SHORT) else SHORT
        folder = self.folder / str(len(variants))
        folder.mkdir()
        self |= trials.in_ranks(2, work, self.unet, folder, variants, folder=folder)
        return self[key]


@pytest.fixture(scope="module")
def found(eps_model, tmp_path_factory):
    return Found(eps_model / "unet", tmp_path_factory.mktemp("strategies"))


@pytest.fixture(scope="module")
def alone(eps_model):
    """One process, fp32: all weights, or a LoRA where the variant trains one."""

    @cache
    def run(lora_rank):
        trial = Trial(eps_model / "unet", spec_of("torch_ddp", plugin="none", lora_rank=lora_rank))
        start = trial.whole()["master"]
        steps = [trial.step(number) for number in range(1, STEPS + 1)]
        return {"start": start, "steps": steps, "end": trial.whole()}

    return lambda variant: run(spec_of(variant).lora_rank)


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("variant", marked(VARIANTS))
def test_the_first_loss_is_that_of_one_process(found, alone, variant):
    exact = tolerance(variant) == TOLERANCE["no"]
    wanted = pytest.approx(alone(variant)["steps"][0][0], rel=1e-7 if exact else tolerance(variant))
    assert found[variant]["steps"][0][0] == wanted


@pytest.mark.parametrize("variant", marked(VARIANTS))
def test_losses_norms_and_weights_are_those_of_one_process(found, alone, variant):
    for (loss, norm), (wanted_loss, wanted_norm) in zip(
        found[variant]["steps"], alone(variant)["steps"], strict=True
    ):
        assert loss == pytest.approx(wanted_loss, rel=tolerance(variant))
        assert norm == pytest.approx(wanted_norm, rel=5 * tolerance(variant))
    for kind in ("master", "ema"):
        off = moved = 0.0
        for name, weight in alone(variant)["end"][kind].items():
            off += (found[variant]["end"][kind][name] - weight).square().sum().item()
            moved += (weight - found[variant]["start"][name]).square().sum().item()
        assert off**0.5 <= 5 * tolerance(variant) * moved**0.5


@pytest.mark.long
def test_bf16_weights_compute_what_fsdp_computes_in_bf16(found):
    """They differ where gradients of several batches add up, in fp32 or in bf16."""
    for (loss, norm), (other_loss, other_norm) in zip(
        found["torch_ddp_bf16_weights"]["steps"], found["fsdp_bf16"]["steps"], strict=True
    ):
        assert (loss, norm) == (pytest.approx(other_loss, rel=1e-3), pytest.approx(other_norm, rel=5e-3))


@pytest.mark.parametrize("variant", marked(v for v in VARIANTS if "torch_ddp" not in v))
def test_masters_start_as_the_exact_weights_and_clipping_clips(found, alone, variant):
    if "lora" not in variant:  # an adapter of a bf16 base is initialized in bf16
        same(found[variant]["start"], alone(variant)["start"])
    assert found[variant]["steps"][0][1] > 2 * CLIP
    assert found[variant]["moment"] == pytest.approx(0.1 * CLIP, rel=tolerance(variant))


@pytest.mark.parametrize("variant", marked(VARIANTS))
def test_a_resumed_run_is_the_same_to_the_bit(found, variant):
    assert found[variant]["again"] == found[variant]["steps"][-1]
    for kind in ("master", "ema"):
        same(found[variant]["again_end"][kind], found[variant]["end"][kind])
        assert any(
            not torch.equal(tensor, found[variant]["saved"][kind][name])
            for name, tensor in found[variant]["end"][kind].items()
        )


@pytest.mark.parametrize("variant", marked(VARIANTS))
def test_a_checkpoint_written_in_the_background_equals_one_written_at_once(found, variant):
    at_once, background = found[variant]["written"].values()
    assert at_once == background
    assert at_once.keys() & {"optimizer.pt", "numbers.json"}


@pytest.mark.parametrize("variant", marked(v for v in VARIANTS if "lora_rank" not in VARIANTS[v]))
def test_the_ema_is_applied_for_unequal_numbers_of_calls(found, eps_model, variant):
    from diffusers import UNet2DConditionModel

    from sdtrain.model.trainable_model import part_of

    unet = UNet2DConditionModel.from_pretrained(eps_model / "unet").train()
    unet.load_state_dict(part_of(found[variant]["saved"]["ema"], "unet"))
    latents, timesteps, hidden, _ = trials.batch(99, 0)
    with torch.inference_mode():
        wanted = unet(latents, timesteps, hidden).sample
    off = (found[variant]["predicted"] - wanted).norm() / wanted.norm()
    assert off <= tolerance(variant)


@pytest.mark.parametrize("pair", marked(CONVERSIONS))
def test_a_checkpoint_of_another_strategy(found, pair):
    """Converted to the bit, as is the EMA; the next step is that of the run that saved."""
    (variant, source), other = pair, found[pair]
    for kind in ("master", "ema"):
        same(other[kind], found[source]["saved"][kind])
    loss, norm = found[source]["steps"][-1]
    rel = max(tolerance(variant), tolerance(source))
    assert other["step"] == (pytest.approx(loss, rel=rel), pytest.approx(norm, rel=5 * rel))


def alone_again(unet, folder):
    """One process continues where two sharded ones stopped."""
    return trials.converted(unet, folder, "fsdp", "zero2_offload")


def test_a_checkpoint_on_another_number_of_processes(found, eps_model, tmp_path):
    saved = found["zero2_offload"]
    folder = found.folder / str(len(SHORT))
    other = trials.in_ranks(1, alone_again, eps_model / "unet", folder, folder=tmp_path)
    for kind in ("master", "ema"):
        same(other[kind], saved["saved"][kind])
    loss, norm = saved["steps"][-1]
    assert other["step"] == (pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-4))


def test_fp16_gradients_that_overflow_are_discarded_and_the_scale_falls(found):
    """Gemini with accumulation, by itself, keeps adding to gradients that overflowed, and takes no step any more."""
    losses, norms = zip(*found["overflow", "gemini_cpu_fp16"], strict=True)
    taken = [norm < float("inf") for norm in norms]
    assert not taken[0] and taken[-1]
    assert taken == sorted(taken)
    assert losses == pytest.approx([losses[0]] * 8, rel=0.5)


@pytest.mark.parametrize("variant", ["zero2_offload", "gemini_cuda"])
def test_a_discarded_step_leaves_no_trace(found, variant):
    after, before = found["discard"][variant]
    assert after == before


def test_what_the_documents_call_tested_is_tested_here():
    rows = re.findall(
        r"\| `(\w+)` \| (\w+) \|.*test_strategies.py", (HOME / "docs/strategies.md").read_text()
    )
    tried = {(spec.plugin, spec.mixed_precision) for spec in map(spec_of, VARIANTS)} | {
        ("none", precision)
        for precision in ("no", "bf16")  # what all are compared with, and the dry run of verify.sh
    }
    assert rows and set(rows) <= tried


@pytest.mark.parametrize("plugin", ["gemini", "fsdp", "low_level_zero"])
def test_an_optimizer_is_never_silently_replaced(plugin):
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", plugin=plugin, optimizer="adafactor")
    with pytest.raises(ValueError, match=f"{plugin} does not train with adafactor"):
        strategies.create(spec, torch.device("cpu"))
