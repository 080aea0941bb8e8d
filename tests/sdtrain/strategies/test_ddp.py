"""The plain PyTorch strategy: learning rates, replaced weights, and what a checkpoint restores.

Tests of ddp.py and updates.py.
"""

import weakref
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.stable_diffusion import StableDiffusion
from sdtrain.model.trainable_model import TrainableModel
from sdtrain.strategies.base import OptimSpec, ParameterGroup
from sdtrain.strategies.ddp import Native
from tests.support import trials

OPTIM = OptimSpec(
    groups=(ParameterGroup("", 1e-3),), betas=(0.9, 0.99), weight_decay=0.0, epsilon=1e-8, max_grad_norm=1.0
)
CPU = torch.device("cpu")


def spec(precision: str) -> RunSpec:
    return RunSpec(pretrained_model_name_or_path="m", output_dir="o", mixed_precision=precision)


def prepared(precision: str) -> Native:
    strategy = Native(spec(precision), CPU)
    strategy.prepare(torch.nn.Linear(2, 1), OPTIM)
    return strategy


def weights(strategy: Native) -> dict[str, torch.Tensor]:
    """The masters by the names of the parameters."""
    return {name: w.clone() for name, w in strategy.full_state(strategy.masters()).items()}


def test_a_checkpoint_without_a_scaler_is_resumed_in_fp16(tmp_path):
    saved = prepared("bf16")
    saved.writer(None, background=False)(tmp_path)
    other = prepared("fp16")
    other.load(tmp_path, ema=None)
    torch.testing.assert_close(other.masters(), saved.masters(), rtol=0, atol=0)


def test_the_scaler_of_an_fp16_run_is_restored(tmp_path):
    saved = prepared("fp16")
    saved._scaler.load_state_dict({**saved._scaler.state_dict(), "scale": 128.0})
    saved.writer(None, background=False)(tmp_path)
    other = prepared("fp16")
    other.load(tmp_path, ema=None)
    assert other._scaler.state_dict()["scale"] == 128.0


def test_each_group_has_its_own_rate_times_the_factor_of_the_schedule():
    """AdamW's first step is the learning rate itself, whatever the gradient."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    strategy = Native(spec("no"), CPU)
    groups = (ParameterGroup("a.", 0.5), ParameterGroup("b.", 0.25))
    strategy.prepare(model, replace(OPTIM, groups=groups, max_grad_norm=0.0))
    before = weights(strategy)
    strategy.backward(sum(parameter.sum() for parameter in model.parameters()))
    strategy.step(0.5)
    moved = {name: (before[name] - weight).item() for name, weight in weights(strategy).items()}
    assert moved == pytest.approx({"a.weight": 0.25, "a.bias": 0.25, "b.weight": 0.125, "b.bias": 0.125})


def test_only_the_weights_are_left_for_the_export():
    strategy = prepared("no")
    strategy.backward(strategy.model(torch.ones(1, 2)).sum())
    strategy.step(1.0)
    trained = weights(strategy)
    freed = [
        weakref.ref(next(strategy.model.parameters()).grad.untyped_storage()),
        *(weakref.ref(table[""].untyped_storage()) for table in strategy._update.tables().values()),
    ]
    assert all(each() is not None for each in freed)
    strategy.finish()
    assert [each() for each in freed] == [None, None, None]
    torch.testing.assert_close(weights(strategy), trained, rtol=0, atol=0)


def test_applied_restores_the_masters_even_after_an_error():
    strategy = prepared("no")
    before = {name: weight.clone() for name, weight in strategy.masters().items()}
    others = {name: weight + 1 for name, weight in before.items()}
    computed = {name: parameter.detach() for name, parameter in strategy.model.named_parameters()}
    with pytest.raises(KeyError), strategy.applied(others):
        applied = {name: parameter.detach() for name, parameter in strategy.model.named_parameters()}
        torch.testing.assert_close(applied, {name: weight + 1 for name, weight in computed.items()})
        raise KeyError
    torch.testing.assert_close(strategy.masters(), before, rtol=0, atol=0)
    restored = {name: parameter.detach() for name, parameter in strategy.model.named_parameters()}
    torch.testing.assert_close(restored, computed, rtol=0, atol=0)


def reference(unet, steps: int) -> list[tuple[float, float]]:
    """Losses and norms of a plain loop, tensor by tensor."""
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-3, (0.9, 0.99), 1e-8, 0.01, foreach=False, fused=False)
    found = []
    for step in range(steps):
        latents, timesteps, hidden, noise = trials.batch(step, 0)
        loss = (unet(latents, timesteps, hidden).sample - noise).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=False)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return found


def test_flat_tensors_compute_what_a_loop_over_tensors_computes(eps_model):
    from diffusers import UNet2DConditionModel

    def unet():
        return UNet2DConditionModel.from_pretrained(eps_model / "unet").train()

    strategy, found = Native(spec("no"), CPU), []
    strategy.prepare(TrainableModel(StableDiffusion(), unet()), replace(OPTIM, weight_decay=0.01))
    for step in range(20):
        latents, timesteps, hidden, noise = trials.batch(step, 0)
        with strategy.accumulate(last=True), strategy.autocast():
            loss = (strategy.model(latents, timesteps, {"hidden_states": hidden}) - noise).square().mean()
        strategy.backward(loss)
        found.append((loss.item(), strategy.step(1.0).item()))
    wanted = reference(unet(), 20)
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in wanted], rel=1e-6)
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in wanted], rel=1e-5)
    assert wanted[-1][0] < wanted[0][0] and wanted[0][1] > 1.0  # it learns, and is clipped


PRODIGY = replace(OPTIM, name="prodigy", groups=(ParameterGroup("a.", 1.0), ParameterGroup("b.", 1.0)))


def prodigy() -> Native:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 1)})
    strategy = Native(spec("no"), CPU)
    strategy.prepare(model, PRODIGY)
    return strategy


def train(strategy: Native, steps: range) -> list[float]:
    """Linear regression; returns Prodigy's estimate d after each step."""
    estimates = []
    for step in steps:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        outputs = strategy.model["b"](strategy.model["a"](inputs))
        strategy.backward((outputs - inputs.sum(1, keepdim=True)).square().mean())
        strategy.step(1.0)
        estimates.append(strategy._update.optimizer.param_groups[0]["d"])
    return estimates


@pytest.mark.skipif(
    find_spec("prodigyopt") is None, reason="prodigyopt is not installed: pip install prodigyopt"
)
def test_a_resumed_prodigy_goes_on_with_its_estimate_bit_by_bit(tmp_path):
    """The estimate d grows after the resume, from the numerator and the distances of all steps before it."""
    undisturbed = prodigy()
    estimates = train(undisturbed, range(60))
    assert estimates[19] < estimates[29] < estimates[-1]  # otherwise nothing would depend on the checkpoint
    interrupted = prodigy()
    assert train(interrupted, range(20)) == estimates[:20]
    interrupted.writer(None, background=False)(tmp_path)
    resumed = prodigy()
    resumed.load(tmp_path, ema=None)
    learned = ("d", "d_max", "d_numerator", "d_denom", "d_hat", "k")
    for group, saved in zip(
        resumed._update.optimizer.param_groups, interrupted._update.optimizer.param_groups, strict=True
    ):
        assert {name: group[name] for name in learned} == {name: saved[name] for name in learned}
    assert train(resumed, range(20, 60)) == estimates[20:]
    torch.testing.assert_close(resumed.masters(), undisturbed.masters(), rtol=0, atol=0)


def test_the_files_of_format_2_are_restored(tmp_path):
    """As version 0.1 wrote them: the optimizer state by index, with the names alongside."""
    saved = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
    average = {name: weight + 1 for name, weight in saved.items()}
    states = {
        index: {"step": torch.tensor(5.0), "exp_avg": weight / 8, "exp_avg_sq": weight / 16}
        for index, weight in enumerate(saved.values())
    }
    groups = [{"lr": 7.0, "base_lr": 7.0, "weight_decay": 7.0, "params": [0, 1]}]
    optimizer = {"state": states, "param_groups": groups}
    save_file(saved, tmp_path / "model.safetensors")
    save_file(average, tmp_path / "ema.safetensors")
    torch.save({"optimizer": optimizer, "names": list(saved), "scaler": {}}, tmp_path / "optimizer.pt")
    strategy = prepared("no")
    ema = {name: torch.zeros_like(weight) for name, weight in strategy.masters().items()}
    strategy.load(tmp_path, ema)
    torch.testing.assert_close(weights(strategy), saved, rtol=0, atol=0)
    torch.testing.assert_close(strategy.full_state(ema), average, rtol=0, atol=0)
    restored = strategy._update.state(strategy._update.tables(), copied=False)
    torch.testing.assert_close(restored["state"], states, rtol=0, atol=0)
    assert (restored["param_groups"][0]["base_lr"], restored["param_groups"][0]["weight_decay"]) == (
        1e-3,
        0.0,
    )
