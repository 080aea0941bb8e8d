"""Tests of load and trainable_model: which parameters a run trains, and in what type."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from sdtrain.model import load
from tests.support.specs import spec


def loaded(folder, precision="no"):
    source = find_pipeline(folder, None, allow_pickle=False)
    return load.load(source, precision, torch.device("cpu"), allow_pickle=False)


def dtypes(module) -> set[torch.dtype]:
    return {weight.dtype for weight in module.parameters()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_trained_weights_are_fp32_and_frozen_parts_have_the_type_of_the_run(eps_model, precision):
    parts = loaded(eps_model, precision)
    assert dtypes(parts.denoiser) == {torch.float32}
    assert dtypes(parts.vae) == dtypes(parts.text_encoders["text_encoder"]) == {load.DTYPES[precision]}
    source = find_pipeline(eps_model, None, allow_pickle=False)
    both = load.load(source, precision, torch.device("cpu"), allow_pickle=False, train_text_encoder=True)
    trained = load.trainable(load.make_trainable(both, spec(train_text_encoder=True)))
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert {name.split(".")[0] for name in trained} == {"unet", "text_encoder"}


def test_a_lora_is_fp32_on_a_base_of_the_type_of_the_run(eps_model):
    source = find_pipeline(eps_model, None, allow_pickle=False)
    parts = load.load(source, "bf16", torch.device("cpu"), allow_pickle=False, lora=True)
    trained = load.trainable(load.make_trainable(parts, spec(lora_rank=2)))
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    frozen = {w.dtype for w in parts.denoiser.parameters() if not w.requires_grad}
    assert frozen == {torch.bfloat16}


def test_a_full_run_trains_the_whole_unet_and_nothing_else(eps_model):
    parts = loaded(eps_model)
    denoiser = load.make_trainable(parts, spec())
    assert len(load.trainable(denoiser)) == len(list(parts.denoiser.parameters()))
    assert parts.denoiser.training
    for frozen in (parts.vae, parts.text_encoders["text_encoder"]):
        assert not any(weight.requires_grad for weight in frozen.parameters())
        assert not frozen.training


def test_a_lora_run_trains_only_the_adapter_which_starts_at_the_base_model(eps_model):
    parts, base = loaded(eps_model), loaded(eps_model)
    denoiser = load.make_trainable(parts, spec(lora_rank=2))
    trained = load.trainable(denoiser)
    assert trained and all("lora_" in name for name in trained)
    assert all(weight.any() == ("lora_A" in name) for name, weight in trained.items())  # B is zero
    latents, timesteps, hidden = torch.ones(1, 4, 8, 8), torch.tensor([5]), torch.ones(1, 7, 32)
    found = denoiser.eval()(latents, timesteps, {"hidden_states": hidden})
    torch.testing.assert_close(found, base.denoiser.eval()(latents, timesteps, hidden).sample)


def test_a_lora_starts_alike_on_every_rank_and_differently_with_another_seed(eps_model):
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(starts))  # whatever random numbers the process has used before
        trained = load.trainable(load.make_trainable(loaded(eps_model), spec(lora_rank=2, seed=seed)))
        starts.append(torch.cat([weight.flatten() for weight in trained.values()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_unknown_layers_are_64(eps_model):
    with pytest.raises(JobError) as error:
        load.make_trainable(loaded(eps_model), spec(lora_rank=2, lora_target_modules=("to_x",)))
    assert error.value.code == 64
    assert "to_x" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("part", "file"), [("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")]
)
def test_weights_that_are_not_finite_are_named(eps_model, tmp_path, part, file, value):
    model = shutil.copytree(eps_model, tmp_path / "model")
    weights = load_file(model / part / file)
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = value
    save_file(weights, model / part / file, metadata={"format": "pt"})
    with pytest.raises(JobError) as caught:
        loaded(model)
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == (66, str(model / part / file))
    assert problem.found == f"{name.removeprefix('text_model.')} holds NaN or infinite values"


def test_weights_that_are_too_large_for_fp16_are_named_as_such(eps_model, tmp_path):
    model = shutil.copytree(eps_model, tmp_path / "model")
    file = model / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_in.weight"][0] = 1e5
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(JobError, match=r"infinite values in fp16\n.*mixed_precision=bf16"):
        loaded(model, "fp16")
    loaded(model, "bf16")
