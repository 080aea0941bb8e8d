"""Tests of sdtrain/validation/held_out_loss: its value, of the exported weights, on any number of processes."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTokenizer

from sddemo.scenes import caption, render, scenes
from sdjob.settings.run_spec import RunSpec
from sdtrain.data.sampling import generator
from sdtrain.validation.held_out_images import split
from tests.sdtrain.reference import Images
from tests.support.worker import losses, scalars


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Three captioned images outside of every training set."""
    folder = tmp_path_factory.mktemp("unseen")
    rows = []
    for number, scene in enumerate(scenes(3, seed=9)):
        render(scene).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption(scene)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@torch.no_grad()
def reference(model, images: Images, seed: int) -> float:
    """Mean squared error at the middles of four equal spans of the schedule, of the VAE's mean, by fixed noise."""
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    text_encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    errors = []
    for index, (pixels, text) in enumerate(zip(images.pixels, images.captions, strict=True)):
        latents = vae.encode(pixels[None]).latent_dist.mean * vae.config.scaling_factor
        ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        noises = torch.randn((4, *latents.shape[1:]), generator=generator(seed, 0, index, "noise/held out"))
        for noise, timestep in zip(noises, (125, 375, 625, 875), strict=True):
            noisy = scheduler.add_noise(latents, noise[None], torch.tensor([timestep]))
            predicted = unet(noisy, timestep, text_encoder(ids)[0]).sample
            errors.append(mse_loss(predicted, noise[None]).item())
    return sum(errors) / len(errors)


def test_it_is_the_loss_of_the_base_model_before_and_of_the_result_after(train, eps_model, unseen):
    output = train(validation_data_dir=unseen, use_ema=True, ema_decay=0.5, learning_rate=1e-2)
    images = Images.read("unseen", unseen, 32)
    found = scalars(output)["validation/loss"]
    assert sorted(found) == [0, 3]
    assert found[0] == pytest.approx(reference(eps_model, images, seed=7), rel=1e-5)
    assert found[3] == pytest.approx(reference(output / "checkpoint", images, seed=7), rel=1e-5)
    assert found[3] != pytest.approx(found[0], rel=1e-4)
    assert json.loads((output / "report.json").read_text())["validation_loss"] == pytest.approx(found[3])


@pytest.mark.parametrize("plugin", ["torch_ddp", "fsdp"])
def test_it_is_the_same_on_two_processes_and_changes_nothing(train, unseen, plugin):
    """Three images on two processes: one process computes an image that does not count."""
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
    images = Images.read("unseen", of_class, 32, prompt="a photo of sks dog")
    found = scalars(one)["validation/loss"][0], scalars(all_of_them)["validation/loss"][0]
    model = json.loads((one / "report.json").read_text())["pretrained_model_name_or_path"]
    first = Images("unseen", images.pixels[:1], images.captions[:1])
    wanted = reference(model, first, seed=7), reference(model, images, seed=7)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_missing_held_out_images_are_66(train, tmp_path, capsys):
    train(code=66, validation_data_dir=tmp_path / "nothing")
    assert "nothing" in capsys.readouterr().err


def folder_of(images, numbers, folder):
    """Copies of some captioned images, renumbered."""
    rows = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    folder.mkdir()
    lines = []
    for index, number in enumerate(numbers):
        (folder / f"{index}.png").write_bytes((images / f"{number}.png").read_bytes())
        lines.append(json.dumps({**rows[number], "file_name": f"{index}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_a_fraction_of_the_dataset_gives_the_same_loss_as_a_separate_folder(
    train, captioned, tmp_path, capfd
):
    """And the rest the same training losses as a separate dataset, on two processes too."""
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", seed=7, validation_split=0.3)
    kept, held = split(spec, [6])
    data, unseen = (
        folder_of(captioned, of, tmp_path / name) for of, name in ((kept, "kept"), (held, "held"))
    )
    settings = {"max_train_steps": 6, "validation_steps": 3, "center_crop": True}
    wanted = train("two", train_data_dir=data, validation_data_dir=unseen, train_batch_size=2, **settings)
    output = train("split", ranks=2, validation_split=0.3, cache_latents="memory", **settings)
    assert "2 of 6 images are held out" in capfd.readouterr().out
    assert losses(output) == pytest.approx(losses(wanted), rel=1e-5)
    found, there = (scalars(folder)["validation/loss"] for folder in (output, wanted))
    assert sorted(found) == [0, 3, 6] and found == pytest.approx(there, rel=1e-5)
    report = json.loads((output / "report.json").read_text())
    assert (report["num_examples"], report["held_out_examples"]) == (4, 2)
    # A run resumes only with the same fraction.
    train("split", code=64, validation_split=0.4, **{**settings, "max_train_steps": 7})
    assert "validation_split" in capfd.readouterr().err


def test_a_fraction_of_each_subject_is_held_out(train, instance, of_class, tmp_path):
    concepts = [
        {"instance_data_dir": str(instance), "instance_prompt": "a photo of sks cross"},
        {"instance_data_dir": str(of_class), "instance_prompt": "a photo of zwx", "weight": 0.5},
    ]
    (tmp_path / "concepts.yaml").write_text(json.dumps(concepts))
    settings = {"recipe": "dreambooth", "concepts_list": tmp_path / "concepts.yaml"}
    output = train(validation_split=0.25, num_train_epochs=2, max_train_steps=None, **settings)
    report = json.loads((output / "report.json").read_text())
    assert (report["num_examples"], report["held_out_examples"], report["steps"]) == (5, 2, 10)
    held = split(
        RunSpec(pretrained_model_name_or_path="m", output_dir="o", seed=7, validation_split=0.25), [3, 4]
    )
    subjects = [
        Images.read("unseen", folder, 32, c["instance_prompt"])
        for folder, c in zip((instance, of_class), concepts, strict=True)
    ]
    pixels = [image for subject in subjects for image in subject.pixels]
    captions = [text for subject in subjects for text in subject.captions]
    unseen = Images("unseen", [pixels[i] for i in held[1]], [captions[i] for i in held[1]])
    assert scalars(output)["validation/loss"][0] == pytest.approx(
        reference(report["pretrained_model_name_or_path"], unseen, seed=7), rel=1e-5
    )
