"""Attention backends: which one computes, and which are refused before training starts."""

from types import SimpleNamespace

import pytest
import torch

from sdjob.problems import JobError
from sdtrain.model import attention

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def denoiser(eps_model):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(eps_model, subfolder="unet")


def old_cudnn(monkeypatch, version=91002):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)


def test_a_backend_that_runs_is_accepted_and_reported(denoiser):
    attention.prove("math", denoiser, CPU, torch.float32)
    assert attention.running("math", denoiser, CPU, torch.float32) == "math"
    kernels = attention.running("auto", denoiser, CPU, torch.float32)
    assert kernels.split(" ")[0] in ("flash", "efficient", "math")


@pytest.mark.parametrize("name", ["cudnn", "efficient", "cudnn,efficient", "fa4"])
def test_backends_that_do_not_run_are_69(denoiser, name):
    with pytest.raises(JobError) as error:
        attention.prove(name, denoiser, CPU, torch.float32)
    assert error.value.code == 69
    assert name in str(error.value) and "attention=auto" in str(error.value)


def test_of_a_list_the_first_that_takes_a_size_computes(denoiser, monkeypatch):
    attention.prove("cudnn,efficient,flash", denoiser, CPU, torch.float32)
    assert attention.running("cudnn,efficient,flash", denoiser, CPU, torch.float32) == "flash"
    assert attention.running("efficient,math", denoiser, CPU, torch.float32) == "math"
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v: {4: 1, 8: 0}[q.shape[-1]])
    assert attention.running("flash,math", denoiser, CPU, torch.float32) == "flash (4), math (8)"


def test_the_order_of_a_list_is_its_priority_and_ends_with_the_context():
    before = torch._C._get_sdp_priority_order()
    with attention.chosen("efficient,math,flash"):
        efficient, math, flash = 2, 0, 1
        assert torch._C._get_sdp_priority_order()[:3] == [efficient, math, flash]
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch._C._get_sdp_priority_order() == before
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_an_old_cudnn_is_left_out_of_a_list_and_refused_alone(denoiser, monkeypatch):
    old_cudnn(monkeypatch)
    assert attention.left_out("flash,math") == {}
    (reason,) = attention.left_out("cudnn,flash,math").values()
    assert "cuDNN 9.10.2 is below 9.15.1" in reason and "77 tokens" in reason
    with attention.chosen("cudnn,flash,math"):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    attention.prove("cudnn,math", denoiser, CPU, torch.float32)
    assert attention.running("cudnn,math", denoiser, CPU, torch.float32) == "math"
    with pytest.raises(JobError) as error:
        attention.prove("cudnn", denoiser, CPU, torch.float32)
    assert error.value.code == 69
    assert "9.15.1" in str(error.value) and "attention=cudnn,flash,efficient,math" in str(error.value)


@pytest.mark.parametrize("version", [91501, 92000, 100000])
def test_a_new_cudnn_is_used(monkeypatch, version):
    old_cudnn(monkeypatch, version)
    with attention.chosen("cudnn,math"):
        assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("module", "capability", "reason"),
    [
        (None, (9, 0), "not installed"),
        (object(), (8, 0), "Hopper or Blackwell"),
        (object(), (12, 0), "Hopper or Blackwell"),
        (object(), (9, 0), ""),
        (object(), (10, 0), ""),
    ],
)
def test_flash_attention_4_is_activated_where_it_can_run(monkeypatch, module, capability, reason):
    activated = []
    monkeypatch.setattr(attention, "find_spec", lambda name: module)
    monkeypatch.setattr(attention, "import_module", lambda name: module)
    cuda = SimpleNamespace(is_available=lambda: True, get_device_capability=lambda: capability)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activated.append)
    attention.why_not_fa4.cache_clear()
    attention._activate_fa4.cache_clear()
    try:
        assert reason in attention.why_not_fa4()
        for _ in range(2):
            with attention.chosen("fa4,flash,math"):
                pass
        assert activated == ([] if reason else ["FA4"])
        attention._activate_fa4.cache_clear()
        with attention.chosen("flash,fa4"):  # the flash of PyTorch comes first
            pass
        assert len(activated) <= 1
        assert list(attention.left_out("fa4,flash,math")) == (["fa4"] if reason else [])
    finally:
        attention.why_not_fa4.cache_clear()
        attention._activate_fa4.cache_clear()


def test_the_proof_is_at_the_lengths_of_the_run(monkeypatch):
    """512, 768, 520 and 64 pixels: large ones keep their remainder of 128, and with it a kernel's last tile."""
    assert attention.positions(64) == [1024, 256, 64]
    assert attention.positions(96) == [1024, 576, 144]
    assert attention.positions(65) == [1024 + 65**2 % 128, 1024 + 33**2 % 128, 17**2, 9**2]
    assert attention.positions(8) == [64, 16, 4, 1]
    tried = []
    attended = attention._attended

    def noted(name, inputs):
        tried.append((name, inputs[0].shape[2], inputs[1].shape[2]))
        return attended(name, inputs)

    monkeypatch.setattr(attention, "_attended", noted)
    assert attention.failure("flash,math", 8, CPU, torch.float32, 4) == ""
    of_list = [lengths for name, *lengths in tried if name == "flash,math"]
    assert of_list == [[16, 16], [16, 77], [4, 4], [4, 77], [1, 1], [1, 77]]


def test_head_sizes_are_found(denoiser):
    assert attention.head_sizes(denoiser) == [4, 8]  # 8 and 16 channels, two heads
    assert attention.head_sizes(torch.nn.Linear(1, 1)) == []
