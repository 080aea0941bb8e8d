"""The loss on held-out pictures: what it is, stable, of the exported weights, the same on any number of processes."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTokenizer

from sddemo.world import caption, draw, scenes
from sdtrain.order import generator
from tests.sdtrain.reference import Pictures
from tests.support.worker import losses, scalars


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Three captioned drawings that are in no training set."""
    folder = tmp_path_factory.mktemp("unseen")
    rows = []
    for number, scene in enumerate(scenes(3, seed=9)):
        draw(scene).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption(scene)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@torch.no_grad()
def reference(model, pictures: Pictures, seed: int) -> float:
    """Mean squared error at the middles of four equal spans of the schedule, of the VAE's mean, by fixed noise."""
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    text_encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    errors = []
    for index, (pixels, text) in enumerate(zip(pictures.pixels, pictures.captions, strict=True)):
        latents = vae.encode(pixels[None]).latent_dist.mean * vae.config.scaling_factor
        ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        noises = torch.randn((4, *latents.shape[1:]), generator=generator(seed, 0, index, "noise/held out"))
        for noise, timestep in zip(noises, (125, 375, 625, 875), strict=True):
            noisy = scheduler.add_noise(latents, noise[None], torch.tensor([timestep]))
            predicted = unet(noisy, timestep, text_encoder(ids)[0]).sample
            errors.append(mse_loss(predicted, noise[None]).item())
    return sum(errors) / len(errors)


def test_it_is_the_loss_of_the_base_before_and_of_the_result_after(train, eps_model, unseen):
    output = train(validation_data_dir=unseen, use_ema=True, ema_decay=0.5, learning_rate=1e-2)
    pictures = Pictures.read("unseen", unseen, 32)
    found = scalars(output)["validation/loss"]
    assert sorted(found) == [0, 3]
    assert found[0] == pytest.approx(reference(eps_model, pictures, seed=7), rel=1e-5)
    assert found[3] == pytest.approx(reference(output / "checkpoint", pictures, seed=7), rel=1e-5)
    assert found[3] != pytest.approx(found[0], rel=1e-4)
    assert json.loads((output / "report.json").read_text())["validation_loss"] == pytest.approx(found[3])


@pytest.mark.parametrize("plugin", ["torch_ddp", "fsdp"])
def test_it_is_the_same_on_two_processes_and_changes_nothing(train, unseen, plugin):
    """Three pictures on two processes: one of them computes one that does not count, so that none waits."""
    settings = {"max_train_steps": 4, "validation_steps": 2, "random_flip": True}
    alone = train("alone", **settings, validation_data_dir=unseen, train_batch_size=2)
    both = train("both", **settings, validation_data_dir=unseen, ranks=2, plugin=plugin)
    found, wanted = (scalars(output)["validation/loss"] for output in (both, alone))
    assert sorted(found) == [0, 2, 4]
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found[0] == wanted[0]
    without = train("without", **settings, ranks=2, plugin=plugin)
    assert losses(both) == losses(without)


def test_a_subject_is_measured_under_its_prompt_and_only_as_many_as_asked(train, of_class):
    one = train("one", recipe="dreambooth", validation_data_dir=of_class, max_validation_samples=1)
    all_of_them = train("all", recipe="dreambooth", validation_data_dir=of_class)
    pictures = Pictures.read("unseen", of_class, 32, prompt="a photo of sks dog")
    found = scalars(one)["validation/loss"][0], scalars(all_of_them)["validation/loss"][0]
    model = json.loads((one / "report.json").read_text())["pretrained_model_name_or_path"]
    first = Pictures("unseen", pictures.pixels[:1], pictures.captions[:1])
    wanted = reference(model, first, seed=7), reference(model, pictures, seed=7)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_held_out_pictures_that_are_not_there_are_66(train, tmp_path, capsys):
    train(code=66, validation_data_dir=tmp_path / "nothing")
    assert "nothing" in capsys.readouterr().err
