"""Nothing of a training step stays on the host that belongs on the device, and nothing waits for the device.

The device is torch's `meta`: it refuses operations with tensors of the CPU as a GPU does, and holds no values, so that
whatever would read one fails.
"""

import pytest
import torch

from sddemo.tiny_pipeline import make_tiny_xl_pipeline
from sdjob.model.pipeline import find_pipeline
from sdjob.settings.run_spec import RunSpec
from sdtrain.data.sampling import Sample
from sdtrain.data.streams import StreamBatch
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


def batch(parts, *, cached):
    """Two images as the loader gives them, on the host."""
    samples = [Sample(0, index, index, "instance") for index in range(2)]
    channels, width = parts.vae.config.latent_channels, parts.denoiser.config.cross_attention_dim
    encodings = {"hidden_states": torch.zeros(2, 77, width)}
    sizes = None
    if "text_encoder_2" in parts.text_encoders:
        encodings["text_embeds"] = torch.zeros(2, parts.text_encoders["text_encoder_2"].config.projection_dim)
        sizes = torch.tensor([[32, 32, 0, 0, 32, 32]] * 2)
    return StreamBatch(
        pixel_values=None if cached else torch.zeros(2, 3, 32, 32),
        posterior=torch.zeros(2, 2 * channels, 8, 8) if cached else None,
        prompts=["a circle", "a cross"],
        encodings=encodings if cached else None,
        samples=samples,
        weight=1.0,
        names=["a.png", "b.png"],
        skipped=[],
        image_weights=torch.ones(2),
        time_ids=sizes,
    )


@pytest.mark.parametrize(
    ("model", "cached", "settings"),
    [
        ("eps", False, EVERYTHING),
        ("v", True, {}),
        ("eps", False, {"train_text_encoder": True, "lora_rank": 2}),
        ("xl", False, {"snr_gamma": 5.0}),
        ("xl", True, {"lora_rank": 2}),
    ],
)
def test_a_step_lies_on_the_device(folders, model, cached, settings):
    spec = RunSpec(pretrained_model_name_or_path="-", output_dir="-", mixed_precision="no", **settings)
    parts = load.load(
        find_pipeline(folders[model], None, allow_pickle=False),
        "no",
        META,
        allow_pickle=False,
        lora=spec.lora_rank > 0,
        train_text_encoder=spec.train_text_encoder,
    )
    strategy = Native(spec, META)
    strategy.prepare(load.make_trainable(parts, spec).to(META), OPTIM)
    ema = Ema(strategy.masters(), 0.9)
    given = noised(parts, (batch(parts, cached=cached),), spec)
    with strategy.accumulate(last=True), strategy.autocast():
        loss = loss_of(strategy.model, given)
    strategy.backward(loss)
    norm = strategy.step(1.0)
    ema.update(strategy.masters())
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
