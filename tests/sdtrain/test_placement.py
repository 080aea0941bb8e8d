"""Nothing of a training step stays on the host that belongs on the device, and nothing waits for the device.

The device is torch's `meta`: it refuses operations with tensors of the CPU as a GPU does, and holds no values, so that
whatever would read one fails.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sddemo.tiny_pipeline import make_tiny_xl_pipeline
from sdjob.model.pipeline import find_pipeline
from sdjob.settings.run_spec import RunSpec
from sdtrain.data.batch import collated, random_inputs
from sdtrain.data.loader import on_device
from sdtrain.data.sampling import Sample
from sdtrain.model import load
from sdtrain.objective.diffusion import loss_of, noised
from sdtrain.optim.ema import Ema
from sdtrain.runtime.distributed import join
from sdtrain.strategies.base import OptimSpec, ParameterGroup
from sdtrain.strategies.ddp import Native
from sdtrain.strategies.fsdp import Fsdp

META = torch.device("meta")
OPTIM = OptimSpec(
    (ParameterGroup("", 1e-4),), (0.9, 0.99), weight_decay=0.01, epsilon=1e-8, max_grad_norm=1.0
)
EVERYTHING = {
    "snr_gamma": 5.0,
    "noise_offset": 0.1,
    "input_perturbation": 0.1,
    "gradient_checkpointing": True,
}


@pytest.fixture(autouse=True)
def values_are_not_checked(monkeypatch):
    """Loading looks for NaN, and weights on this device have no values."""
    monkeypatch.setattr(load, "_check_finite", lambda *_: None)


@pytest.fixture(scope="module")
def folders(eps_model, v_model, tmp_path_factory):
    xl = make_tiny_xl_pipeline(tmp_path_factory.mktemp("xl") / "model")
    return {"eps": eps_model, "v": v_model, "xl": xl}


def batch(parts, spec, *, cached):
    """Two images as the loader gives them, on the host."""
    examples = []
    for index, prompt in enumerate(("a circle", "a cross")):
        example = {"weight": 1.0, "name": prompt, "skipped": []}
        example["random"] = random_inputs(parts, spec).of(Sample(0, index, index, "instance"), (32, 32))
        ids = {name: of_one[0] for name, of_one in parts.token_ids([prompt], 1).items()}
        if "text_encoder_2" in parts.text_encoders:
            example["time_ids"] = torch.tensor([32, 32, 0, 0, 32, 32])
        if cached:
            example["posterior"] = torch.zeros(2 * parts.vae.config.latent_channels, 8, 8)
            example["encodings"] = {
                "hidden_states": torch.zeros(77, parts.denoiser.config.cross_attention_dim)
            }
            if "text_encoder_2" in parts.text_encoders:
                width = parts.text_encoders["text_encoder_2"].config.projection_dim
                example["encodings"]["text_embeds"] = torch.zeros(width)
        else:
            example |= {"pixels": torch.zeros(3, 32, 32, dtype=torch.uint8), "token_ids": ids}
        examples.append(example)
    return collated([examples], [1.0])


class Copies(TorchDispatchMode):
    """Records what a step copies between host and device; reading a value of this device fails."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        name = function.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source = arguments[1 if name == "copy_" else 0]
            if source.device != result.device:
                self.found.append(f"{name}: {source.device} to {result.device}")
        return result


@pytest.mark.parametrize(
    ("model", "cached", "settings"),
    [
        ("eps", False, EVERYTHING),
        ("v", True, {}),
        ("eps", False, {"train_text_encoder": True, "lora_rank": 2}),
        ("xl", False, {"snr_gamma": 5.0}),
        ("xl", True, {"lora_rank": 2}),
        ("xl", True, {"mixed_precision": "bf16", "weights_dtype": "bf16"}),
        ("eps", False, {"mixed_precision": "bf16", "weights_dtype": "bf16", "train_text_encoder": True}),
    ],
)
def test_a_step_lies_on_the_device(folders, model, cached, settings):
    settings = {"mixed_precision": "no", **settings}
    spec = RunSpec(pretrained_model_name_or_path="-", output_dir="-", **settings)
    parts = load.load(
        find_pipeline(folders[model], None, allow_pickle=False),
        spec.mixed_precision,
        META,
        allow_pickle=False,
        lora=spec.lora_rank > 0,
        train_text_encoder=spec.train_text_encoder,
    )
    strategy = Native(spec, META)
    strategy.prepare(load.make_trainable(parts, spec).to(META), OPTIM)
    ema = Ema(strategy.masters(), 0.9)
    (given,) = on_device([batch(parts, spec, cached=cached)], META)
    noised(parts, given, spec)  # the first time, the schedule goes to the device
    with Copies() as copies:
        with strategy.accumulate(last=True), strategy.autocast():
            loss = loss_of(strategy.model, noised(parts, given, spec))
        strategy.backward(loss)
        norm = strategy.step(1.0)
        ema.update(strategy.masters())
    assert copies.found == []
    assert (loss.device, norm.device) == (META, META)
    assert {share.device for share in ema.shards.values()} == {META}


def test_the_device_of_these_tests_notices(folders):
    """The mistake that it is there for."""
    parts = load.load(find_pipeline(folders["eps"], None, allow_pickle=False), "no", META, allow_pickle=False)
    with pytest.raises((RuntimeError, NotImplementedError)):
        parts.denoiser(
            torch.zeros(1, 4, 8, 8), torch.zeros(1, device=META), torch.zeros(1, 77, 32, device=META)
        )
    with pytest.raises(RuntimeError):
        torch.zeros(2, device=META) + torch.zeros(2)


def test_a_copy_in_a_step_is_noticed(folders):
    """The mistake that counting copies is there for: what was on the host a moment ago."""
    with Copies() as copies:
        torch.zeros(2).to(META)
        torch.zeros(2, device=META).copy_(torch.zeros(2))
        torch.zeros(2).to(torch.float64)
    assert copies.found == ["_to_copy: cpu to meta", "copy_: cpu to meta"]


def test_the_norm_of_gradients_that_are_kept_on_the_host_lies_with_the_loss():
    spec = RunSpec(
        pretrained_model_name_or_path="-",
        output_dir="-",
        plugin="fsdp",
        mixed_precision="no",
        cpu_offload=True,
    )
    with join("cpu", {}, group_of_one=True) as world:
        strategy = Fsdp(spec, world.device)
        strategy.prepare(torch.nn.Sequential(torch.nn.Linear(2, 2)), OPTIM)
        strategy.backward(strategy.model(torch.ones(1, 2)).sum())
        strategy._device = META  # as if the losses were there
        assert strategy.step(1.0).device == META
