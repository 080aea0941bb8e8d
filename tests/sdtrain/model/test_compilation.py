"""Compiled training: the same losses and gradients, one graph a shape, and what is measured and kept."""

import contextlib
import functools
import json
import os

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures import ARCHITECTURES
from sdtrain.model import compilation, load
from sdtrain.model.compilation import CompileTime
from sdtrain.model.trainable_model import TrainableModel
from sdtrain.objective import diffusion
from sdtrain.objective.diffusion import Noised, loss_of
from sdtrain.runtime import heartbeat
from sdtrain.tools import synthetic
from tests.support.worker import losses


@pytest.fixture(autouse=True)
def unchanged():
    """No graphs, limits or folders of another test."""
    caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ[name] for name in caches if name in os.environ}
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield
    torch._dynamo.reset()
    for name in caches:
        os.environ.pop(name, None)
    os.environ.update(before)


def spec(**values):
    given = {"compile": "whole", "train_batch_size": 2, "resolution": 32, "mixed_precision": "no", **values}
    return RunSpec(pretrained_model_name_or_path="m", output_dir="o", **given)


class Small(nn.Module):
    """As many blocks as layers, in a list, as a denoiser has."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.unet = nn.Module()
        self.unet.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)) for _ in range(layers)
        )

    def forward(self, latents, timesteps, conditioning):
        for block in self.unet.blocks:
            latents = latents + block(latents).tanh()
        return latents


def batch_of(size: int) -> Noised:
    noise = torch.Generator().manual_seed(size)
    latents, target = (torch.randn(2, 4, size, size, generator=noise) for _ in range(2))
    return Noised(latents, torch.zeros(2, dtype=torch.long), {}, target, torch.ones(2), (2,), (1.0,))


def gradients(loss, model, batch):
    model.zero_grad()
    value = loss(model, batch)
    torch.autograd.backward(value)
    return value.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found, wanted, tolerance=1e-5):
    """To within this fraction of the largest gradient, since some are zero but for rounding."""
    assert float((found[0] - wanted[0]).abs()) <= tolerance * float(wanted[0])
    most = max(float(grad.abs().max()) for grad in wanted[1].values())
    assert found[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        assert float((found[1][name] - grad).abs().max()) <= tolerance * most, name


# --- by Inductor -------------------------------------------------------------------------------------


@pytest.mark.long
def test_inductor_gives_the_losses_and_gradients_of_eager_execution(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, batch = Small(1), batch_of(4)
    wanted = gradients(loss_of, model, batch)
    compiled = compilation.compiled(loss_of, model, spec(), 1)
    assert_close(gradients(compiled, model, batch), wanted)
    assert list(tmp_path.rglob("*.so"))


@pytest.mark.long
@pytest.mark.parametrize(
    "values", [{}, {"gradient_checkpointing": True}, {"lora_rank": 4}], ids=["full", "checkpointing", "lora"]
)
@pytest.mark.parametrize("kind", ["eps_model", "xl_model"])
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_inductor_on_a_denoiser(request, how, kind, values):
    asked = spec(compile=how, **values)
    model, batch = tiny(request.getfixturevalue(kind), asked)
    wanted = gradients(loss_of, model, batch)
    assert_close(gradients(compilation.compiled(loss_of, model, asked, 1), model, batch), wanted)


def test_a_whole_forward_pass_is_one_graph_with_the_same_gradients(xl_model):
    """By autograd's and dynamo's part of the compiler."""
    asked = spec(lora_rank=2)
    model, batch = tiny(xl_model, asked)
    wanted = gradients(loss_of, model, batch)
    compiled = compilation.compiled(loss_of, model, asked, 1, backend="aot_eager")
    assert_close(gradients(compiled, model, batch), wanted)


def tiny(folder, asked):
    lora, encoders = asked.lora_rank > 0, asked.train_text_encoder
    pipeline = find_pipeline(folder, None, allow_pickle=False)
    parts = load.load(
        pipeline,
        "no",
        torch.device("cpu"),
        allow_pickle=False,
        lora=lora,
        train_text_encoder=encoders,
    )
    batch = next(synthetic.batches(parts, asked, 0))
    return load.make_trainable(parts, asked), diffusion.noised(parts, batch, asked)


def test_a_compiler_that_drops_gradients_is_refused_before_the_first_step():
    def halved(model, batch):
        return loss_of(model, batch) * 0.5

    model, batch = Small(1), batch_of(4)
    proven = compilation._Proven(halved, loss_of, model, "whole")
    with pytest.raises(JobError, match="differ from those of eager execution by 50%") as error:
        proven(model, batch)
    assert error.value.code == 69
    assert "compile=off" in str(error.value)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiler_that_drops_gradients_of_a_block_is_refused_in_its_first_forward_pass(
    monkeypatch, checkpointing
):
    """Also in the forward pass of a checkpoint, which keeps no activations."""

    def dropping(function, **options):
        return lambda latents: function(latents) - latents + latents.detach()

    monkeypatch.setattr(torch, "compile", dropping)
    model = Small(2)
    compilation.compiled(loss_of, model, spec(compile="blocks"), 1)
    block = model.unet.blocks[1]
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with pytest.raises(JobError, match=r"blocks: Sequential: results or gradients differ from .* by \d+%"):
        checkpoint(block, latents, use_reentrant=False) if checkpointing else block(latents)


@pytest.mark.parametrize(("factor", "is_refused"), [(float("nan"), True), (0.5, True), (1.05, False)])
def test_gradients_alone_are_enough_to_refuse_a_compiler(factor, is_refused):
    def compiled(model, batch):
        value = loss_of(model, batch)
        return value.detach() + factor * (value - value.detach())

    model, batch = Small(1), batch_of(4)
    proven = compilation._Proven(compiled, loss_of, model, "whole")
    with pytest.raises(JobError) if is_refused else contextlib.nullcontext():
        proven(model, batch)


def test_what_is_not_finite_in_eager_execution_is_not_compared():
    wanted = torch.tensor([1.0, float("inf"), float("nan")])
    assert compilation._error(torch.tensor([1.0, 7.0, float("inf")]), wanted) == 0
    assert not compilation._error(torch.full((3,), float("nan")), wanted) <= compilation._TOLERANCE


def test_blocks_are_compared_once_and_give_the_gradients_of_eager_execution(monkeypatch):
    calls = []

    def counting(function, **options):
        def compiled(*arguments):
            calls.append(1)
            return function(*arguments)

        return compiled

    model, batch = Small(2), batch_of(4)
    wanted = gradients(loss_of, model, batch)
    monkeypatch.setattr(torch, "compile", counting)
    compilation.compiled(loss_of, model, spec(compile="blocks"), 1)
    for _ in range(3):
        assert_close(gradients(loss_of, model, batch), wanted)
    assert len(calls) == 2 * (1 + 3)


# --- graphs ------------------------------------------------------------------------------------------


def test_a_graph_for_each_size_and_none_for_more_steps():
    counter = CompileCounter()
    model = Small()
    compiled = compilation.compiled(loss_of, model, spec(), 10, backend=counter)
    for size in (*range(2, 12), *range(2, 12)):
        gradients(compiled, model, batch_of(size))
    assert counter.frame_count == 10


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_more_sizes_than_expected_are_an_error_and_not_eager_execution(how):
    model = Small(1)
    compiled = compilation.compiled(loss_of, model, spec(compile=how), 1, backend="eager")
    with pytest.raises(FailOnRecompileLimitHit):
        for size in range(2, 12):
            compiled(model, batch_of(size))


def test_blocks_are_compiled_in_training_only():
    counter = CompileCounter()
    model = Small()
    compiled = compilation.compiled(loss_of, model, spec(compile="blocks"), 1, backend=counter)
    assert compiled is loss_of
    gradients(compiled, model, batch_of(4))
    frames = counter.frame_count
    assert frames >= 1
    model.eval()
    for size in (2, 3, 5):
        compiled(model, batch_of(size))
    assert counter.frame_count == frames


def test_a_graph_break_is_an_error():
    class Printing(Small):
        def forward(self, latents, timesteps, conditioning):
            torch._dynamo.graph_break()
            return super().forward(latents, timesteps, conditioning)

    model = Printing()
    compiled = compilation.compiled(loss_of, model, spec(), 1, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(model, batch_of(2))


MODELS = {
    "sd14": "StableDiffusionPipeline",
    "sd21": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["full", "checkpointing", "lora"])
def test_the_step_of_real_sizes_is_one_graph(name, kind):
    """Without memory for weights, on the meta device."""
    asked = spec(gradient_checkpointing=kind == "checkpointing", lora_rank=4 if kind == "lora" else 0)
    config = json.loads((synthetic._CONFIGS / CONFIGS[name] / "unet/config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        if asked.lora_rank:
            from peft import LoraConfig

            targets = ["to_k", "to_q", "to_v", "to_out.0"]
            unet.requires_grad_(False).add_adapter(LoraConfig(r=4, target_modules=targets))
        latents, timesteps = torch.zeros(2, 4, 64, 64), torch.zeros(2, dtype=torch.long)
        conditioning = {"hidden_states": torch.zeros(2, 77, config["cross_attention_dim"])}
        if name == "xl":
            conditioning |= {"text_embeds": torch.zeros(2, 1280), "time_ids": torch.zeros(2, 6)}
        batch = Noised(latents, timesteps, conditioning, latents, torch.ones(2), (2,), (1.0,))
    if asked.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    model = TrainableModel(ARCHITECTURES[MODELS[name]], unet).train()
    found = torch._dynamo.explain(loss_of)(model, batch)
    assert (found.graph_count, found.graph_break_count) == (1, 0)


CONFIGS = {"sd14": "stable_diffusion_1", "sd21": "stable_diffusion_2", "xl": "stable_diffusion_xl"}


# --- runs --------------------------------------------------------------------------------------------

PRIOR = {
    "recipe": "dreambooth",
    "with_prior_preservation": True,
    "class_prompt": "a cross",
    "num_class_images": 4,
}


@pytest.fixture
def traced(monkeypatch):
    """Everything but the generation of code, which takes minutes on a CPU."""
    compiled = functools.partial(compilation.compiled, backend="eager")
    monkeypatch.setattr(compilation, "compiled", compiled)


def test_a_compiled_run_gives_the_same_losses_and_resumes_exactly(train, of_class, traced):
    given = {**PRIOR, "class_data_dir": of_class, "gradient_checkpointing": True, "skip_steps": 0}
    images = {"validation_prompts": ["a cross"], "num_validation_images": 1}
    wanted = train("eager", **given, max_train_steps=4, compile="off")
    found = train("compiled", **given, **images, max_train_steps=2, compile="blocks")
    report = json.loads((found / "report.json").read_text())
    assert report["compile"] == "blocks"
    assert 0 < report["compile_seconds"] < report["seconds_of_this_start"]
    assert 1 / report["steps_per_second"] < report["compile_seconds"]
    train("compiled", **given, **images, max_train_steps=4, compile="blocks")
    assert losses(found) == losses(wanted)
    name = "checkpoint/unet/diffusion_pytorch_model.safetensors"
    weights, others = load_file(found / name), load_file(wanted / name)
    assert all((weights[key] == others[key]).all() for key in others)


@pytest.mark.parametrize(
    ("plugin", "how"),
    [("torch_ddp", "blocks"), ("torch_ddp", "whole"), pytest.param("fsdp", "blocks", marks=pytest.mark.long)],
)
def test_two_ranks_give_the_losses_of_one_process(train, traced, plugin, how):
    wanted = train("eager", train_batch_size=2, compile="off")
    found = train("compiled", ranks=2, plugin=plugin, compile=how)
    assert losses(found) == pytest.approx(losses(wanted), rel=1e-5)
    assert json.loads((found / "report.json").read_text())["compile_seconds"] > 0


def test_compilation_by_name_is_refused_without_a_compiler(train, monkeypatch, capfd):
    monkeypatch.setenv("CXX", "no-such-compiler")
    train(code=69, compile="blocks")
    assert "compile" in (error := capfd.readouterr().err)
    assert "apt-get install gcc g++, or use compile=off" in error


# --- time --------------------------------------------------------------------------------------------


def test_compile_time_is_a_stage_of_its_own_and_not_of_the_steps(monkeypatch):
    events = []

    @contextlib.contextmanager
    def noted(name, **options):
        events.append(name)
        yield
        events.append(f"end of {name}")

    monkeypatch.setattr(heartbeat, "working", noted)
    model, time = Small(), CompileTime()
    compiled = compilation.compiled(loss_of, model, spec(), 1, backend="aot_eager")
    with time.measured(spec(), lambda: noted("pause")):
        gradients(compiled, model, batch_of(4))
        first = time.seconds
        assert first > 0
        gradients(compiled, model, batch_of(4))
    assert time.seconds == first
    assert events[:4] == ["pause", "compile", "end of compile", "end of pause"]
    count = len(events)
    gradients(compiled, model, batch_of(5))
    assert len(events) == count  # not measured any more
