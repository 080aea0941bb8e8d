"""The sums of `sdjob.model.memory_estimate` against what training really holds, byte by byte, on a tiny pipeline."""

import pytest
import torch

from sdjob.model import memory_estimate, trainable
from sdjob.model.pipeline import find_pipeline
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec
from sdtrain.model import load
from sdtrain.optim.ema import Ema

CPU = Topology("cpu", 1)


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_by(forward, parameters) -> int:
    """Bytes that a forward pass leaves for the backward pass, each piece of memory counted once."""
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}])
def test_of_two_text_encoders_only_what_gets_a_gradient_is_trained_and_counted(xl_model, settings):
    spec = RunSpec(
        pretrained_model_name_or_path=str(xl_model), output_dir="o", train_text_encoder=True, **settings
    )
    folder = find_pipeline(xl_model, None, allow_pickle=False)
    parts = load.load(folder, "no", torch.device("cpu"), allow_pickle=False, train_text_encoder=True)
    denoiser = load.make_trainable(parts, spec)
    opened = load.trainable(denoiser)
    tokens = parts.token_ids(["a red cross", ""], 2)
    sizes = {"time_ids": torch.full((2, 6), 32)}
    denoiser(torch.ones(2, 4, 8, 8), torch.tensor([5, 6]), {**tokens, **sizes}).sum().backward()
    assert [name for name, weight in opened.items() if weight.grad is None] == []
    assert {name.split(".")[0] for name in opened} == {"unet", *trainable.parts(spec, folder)[1:]}
    assert len(parts.text_encoders) == len(trainable.parts(spec, folder)) - 1 == 2
    assert trainable.parameters(spec, folder) == sum(weight.numel() for weight in opened.values())
    need = memory_estimate.estimate(spec, folder, CPU)
    every = [
        p for part in (parts.denoiser, parts.vae, *parts.text_encoders.values()) for p in part.parameters()
    ]
    assert size(p for p in every if not p.requires_grad) == need.frozen
    if not spec.lora_rank:
        written = memory_estimate.output_sizes(spec, folder)
        assert written.result == sum(part.num_bytes for part in folder.parts.values())


@pytest.mark.parametrize("settings", [{"use_ema": True}, {"lora_rank": 4}, {"gradient_checkpointing": True}])
def test_what_is_held(eps_model, settings):
    spec = RunSpec(
        pretrained_model_name_or_path=str(eps_model),
        output_dir="o",
        resolution=64,
        train_batch_size=2,
        **settings,
    )
    folder = find_pipeline(eps_model, None, allow_pickle=False)
    need = memory_estimate.estimate(spec, folder, CPU)
    parts = load.load(folder, "no", torch.device("cpu"), allow_pickle=False, lora=spec.lora_rank > 0)
    denoiser = load.make_trainable(parts, spec)
    opened = load.trainable(denoiser)
    every = [
        p
        for part in (parts.denoiser, parts.vae, parts.text_encoders["text_encoder"])
        for p in part.parameters()
    ]

    latents, timesteps, hidden = (
        torch.zeros(2, 4, 16, 16),
        torch.zeros(2, dtype=torch.long),
        {"hidden_states": torch.zeros(2, 77, 32)},
    )
    saved = saved_by(lambda: denoiser(latents, timesteps, hidden), every)
    optimizer = torch.optim.AdamW(opened.values(), fused=True)
    denoiser(latents, timesteps, hidden).sum().backward()
    gradients = size(p.grad for p in opened.values())
    optimizer.step()

    assert size(opened.values()) == need.weights
    assert gradients == need.gradients
    assert (
        size(m for state in optimizer.state.values() for m in state.values() if m.dim())
        == need.optimizer_state
    )
    assert size(p for p in every if not p.requires_grad) == need.frozen
    average = Ema(opened, 0.99).shards.values() if spec.use_ema else []
    assert size(average) == need.ema
    if spec.gradient_checkpointing:  # the inputs; what is computed again comes on top
        layers = list(memory_estimate._layers(folder.parts["unet"].tensors, 16))
        inputs = 2 * sum(layer.kept(4, 4, lora=False) for layer in layers)
        assert 0.6 * saved < inputs <= saved
        assert need.activations == inputs + 2 * max(layer.saved(4, 4, lora=False) for layer in layers)
    else:
        assert 0.85 * saved < need.activations <= saved
