"""Another family of models is a row of facts and a class: here a diffusion transformer trained by flow matching."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor
from safetensors.torch import load_file

import sdjob.model.architectures
import sdtrain.architectures
from sdjob.model import part_compatibility, trainable
from sdjob.model.architectures import STABLE_DIFFUSION, ArchitectureFacts, Component
from sdjob.model.key_names import OriginalTensor
from sdjob.model.pipeline import find_pipeline
from sdjob.output import fingerprint
from sdjob.output.layout import LORA_FILE
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import GenerationSettings
from sdtrain.architectures.stable_diffusion import StableDiffusion
from sdtrain.data.batch import Batch, collated, random_inputs
from sdtrain.data.sampling import Sample
from sdtrain.export import export
from sdtrain.model import check_tensors, generation, load
from sdtrain.objective.diffusion import loss_of, noised
from tests.support.worker import losses

FACTS = ArchitectureFacts(
    class_name="ToyPipeline",
    name="toy",
    title="Toy",
    tags=("toy",),
    denoiser="transformer",
    denoiser_title="transformer",
    conditioning_width=("joint_attention_dim", 4096),
    components={
        "transformer": Component(
            "diffusers", ("SD3Transformer2DModel",), "config.json", ("diffusion_pytorch_model",) * 2
        ),
        **{name: of for name, of in STABLE_DIFFUSION.components.items() if name != "unet"},
    },
    text_encoders={"text_encoder": "tokenizer"},
    prediction_types=("flow",),
    lora_targets=("to_q", "to_v"),
    text_encoder_lora_targets=("q_proj",),
    kohya_prefixes={"transformer": "lora_transformer", "text_encoder": "lora_te"},
)


class FlowMatching:
    """Lipman et al. 2022, arXiv:2210.02747: straight paths from latents to noise."""

    def sample_timestep(self, generator):
        return 1000 * torch.rand(1, generator=generator)

    def even_timesteps(self, count):
        return 1000 * (torch.arange(count) + 0.5) / count

    def add_noise(self, latents, noise, timesteps):
        sigma = (timesteps / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents, noise, timesteps):
        return noise - latents

    def min_snr_weights(self, timesteps, gamma):
        raise AssertionError("refused before: flow matching has no such weights")


class Toy:
    facts = FACTS
    pipeline = StableDiffusion3Pipeline
    takes_sizes = False
    token_ids = staticmethod(StableDiffusion.token_ids)
    length_warnings = staticmethod(StableDiffusion.length_warnings)

    def schedulers(self, folder, *, zero_snr):
        return FlowMatching(), FlowMatchEulerDiscreteScheduler.from_pretrained(folder)

    def encode(self, encoders, token_ids):
        output = encoders["text_encoder"](token_ids["text_encoder"].flatten(0, 1))
        return {"hidden_states": output[0], "pooled": output[1]}

    def predict(self, denoiser, latents, timesteps, conditioning):
        hidden, pooled = conditioning["hidden_states"], conditioning["pooled"]
        return denoiser(latents, hidden, pooled, timesteps, return_dict=False)[0]

    def assemble(self, parts):
        raise AssertionError("this architecture generates without a pipeline")

    def sample(self, parts, prompts, empty, seeds, how):
        noise = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise)
        parts.sampler.set_timesteps(how.inference_steps)
        for timestep in parts.sampler.timesteps:
            velocity = self.predict(parts.denoiser, latents, timestep.expand(len(seeds)), prompts)
            latents = parts.sampler.step(velocity, timestep, latents).prev_sample
        return VaeImageProcessor().postprocess(parts.vae.decode(latents).sample)

    def original_names(self, part, config, names):
        return {name: OriginalTensor(f"{part}.{name}") for name in names}

    def modelspec(self, configs):
        return "toy"

    def kohya_version(self, configs):
        return "toy"


@pytest.fixture
def model(eps_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sdjob.model.architectures.ARCHITECTURE_FACTS, "ToyPipeline", FACTS)
    monkeypatch.setitem(sdtrain.architectures.ARCHITECTURES, "ToyPipeline", Toy())
    folder = shutil.copytree(
        eps_model, tmp_path / "model", ignore=shutil.ignore_patterns("unet", "scheduler")
    )
    torch.manual_seed(0)
    SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=8,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    ).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    index |= {"_class_name": "ToyPipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def loaded(folder, spec):
    source = find_pipeline(folder, None, allow_pickle=False)
    text = spec.train_text_encoder
    return source, load.load(
        source,
        "no",
        torch.device("cpu"),
        allow_pickle=False,
        train_text_encoder=text,
        lora=bool(spec.lora_rank),
    )


def batch(parts, spec) -> Batch:
    generator = torch.Generator().manual_seed(0)
    examples = [
        {
            "pixels": torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8),
            "token_ids": {name: ids[0] for name, ids in parts.token_ids([prompt], 1).items()},
            "random": random_inputs(parts, spec).of(Sample(0, index, index, "captioned"), (32, 32)),
            "weight": 1.0,
            "name": f"{index}.png",
            "skipped": [],
        }
        for index, prompt in enumerate(["a circle", "a cross"])
    ]
    return collated([examples], [1.0])


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_it_trains_generates_and_exports(model, tmp_path, lora_rank):
    spec = RunSpec(
        pretrained_model_name_or_path=str(model),
        output_dir="o",
        train_text_encoder=True,
        lora_rank=lora_rank,
        export_single_file=True,
    )
    source, parts = loaded(model, spec)
    assert source.prediction_type == "flow"
    assert part_compatibility.problems(source) == []
    assert check_tensors.compare(source) == check_tensors.Comparison()
    assert trainable.parts(spec, source) == ("transformer", "text_encoder")
    assert fingerprint.model_facts(source)["model_name"] != ""
    trained = load.make_trainable(parts, spec)
    assert {name.split(".")[0] for name in load.trainable(trained)} == {"transformer", "text_encoder"}
    counted = sum(weight.numel() for weight in load.trainable(trained).values())
    positions = 0 if lora_rank else parts.denoiser.pos_embed.pos_embed.numel()  # a buffer, stored as a weight
    assert trainable.parameters(spec, source) == counted + positions

    optimizer = torch.optim.SGD(load.trainable(trained).values(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = loss_of(trained, noised(parts, batch(parts, spec), spec))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]

    how = GenerationSettings(size=(32, 32), inference_steps=2, guidance_scale=1.0, batch_size=2)
    (image,) = generation.generate(parts, ["a circle"], [1], how)
    assert image.size == (32, 32)

    state = {name: weight.detach() for name, weight in load.trainable(trained).items()}
    folder = tmp_path / "out"
    export.export(folder, source, parts, state, spec)
    if lora_rank:
        names = load_file(folder / LORA_FILE).keys()
        assert {name.split(".")[0] for name in names} == {"transformer", "text_encoder"}
        kohya = load_file(folder / export.WEBUI_LORA)
        assert "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight" in kohya
        return
    _, again = loaded(folder, spec)
    for name, weight in parts.denoiser.state_dict().items():
        assert torch.equal(again.denoiser.state_dict()[name], weight)
    assert "transformer.proj_out.weight" in load_file(folder / export.WEBUI_MODEL)


def test_the_worker_trains_it_and_resumes(model, train):
    settings = {
        "pretrained_model_name_or_path": model,
        "validation_prompts": ["a cross"],
        "guidance_scale": 1,
    }
    settings |= {"cache_text_embeddings": "memory", "validation_split": 0.2}
    undisturbed = train("undisturbed", max_train_steps=2, **settings)
    train(max_train_steps=1, **settings)
    output = train(max_train_steps=2, **settings)
    assert losses(output) == losses(undisturbed)
    report = json.loads((output / "report.json").read_text())
    assert (report["model"], report["trained"], report["trained_parts"]) == (
        "toy",
        "transformer",
        ["transformer"],
    )
    assert "All weights of the transformer of model" in (output / "checkpoint/README.md").read_text()
    assert find_pipeline(output / "checkpoint", None, allow_pickle=False).class_name == "ToyPipeline"
