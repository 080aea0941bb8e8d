"""Tests of cached_encodings and examples: an entry depends on its key alone, and what is cached leaves the device."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdjob.model.pipeline import find_pipeline
from sdtrain.architectures.base import Parts
from sdtrain.data.cached_encodings import cached_latents, cached_prompts
from sdtrain.data.examples import prepare_examples
from sdtrain.data.streams import Stream
from sdtrain.data.training_images import View
from sdtrain.model import load
from sdtrain.model.generation import evaluating
from tests.sdtrain.data.test_training_images import Images, photo, training
from tests.support.worker import context_of

CACHED = {"cache_latents": "memory", "cache_text_embeddings": "memory", "center_crop": True}


@pytest.fixture(scope="module")
def model(eps_model):
    return find_pipeline(eps_model, None, allow_pickle=False)


@pytest.fixture
def parts(model) -> Parts:
    return load.load(model, "no", torch.device("cpu"), allow_pickle=False)


def stream(count: int, first: int = 0) -> Stream:
    photos = [photo((64 + number % 3, 64)) for number in range(first, first + count)]
    return Stream("instance", training(Images(*photos), center_crop=True, random_flip=False), "a cross")


def latents(parts, count, first=0):
    (found,) = cached_latents(context_of(**CACHED), parts, (stream(count, first),), None)
    entries = found.images.latents
    return [entries[View(index, (32, 32), False)]["posterior"] for index in range(count)]


def test_an_entry_has_the_same_bits_whatever_is_made_with_it(parts):
    """So on any number of ranks, after a stop, and next to entries that were there."""
    eleven, two = latents(parts, 11), latents(parts, 2, first=9)
    assert torch.equal(eleven[9], two[0]) and torch.equal(eleven[10], two[1])
    prompts = [f"a circle {number}" for number in range(11)]
    every, last = (cached_prompts(context_of(**CACHED), parts, of) for of in (prompts, prompts[10:]))
    assert torch.equal(every[prompts[10]]["hidden_states"], last[prompts[10]]["hidden_states"])


def test_entries_on_disk_are_found_again_and_only_those_of_this_shape(parts, tmp_path, capsys):
    on_disk = {"cache_latents": "disk", "cache_text_embeddings": "disk", "cache_dir": str(tmp_path)}
    for found in (0, 3, 0):
        cached_latents(context_of(**CACHED | on_disk), parts, (stream(3),), None)
        cached_prompts(context_of(**CACHED | on_disk), parts, ["a", "b", "c"])
        assert capsys.readouterr().out.count(f": {found} of 3 cached") == 2
        if found:
            for path in tmp_path.rglob("*.safetensors"):
                save_file(
                    {name: weight[..., :1].contiguous() for name, weight in load_file(path).items()}, path
                )


def test_the_encoders_see_batches_of_one_shape(parts, monkeypatch):
    """By which a GPU too gives the same bits: its rounding depends on the shape."""
    seen, encode = [], parts.vae.encode
    monkeypatch.setattr(parts.vae, "encode", lambda images: seen.append(len(images)) or encode(images))
    latents(parts, 11)
    parts.text_encoders["text_encoder"].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    cached_prompts(context_of(**CACHED), parts, [f"a circle {number}" for number in range(11)])
    assert seen == [8, 8, 8, 8]


def test_an_entry_is_what_a_step_would_compute(parts):
    given = stream(3)
    found = latents(parts, 3)
    for index in range(3):
        pixels = given.images.pixels(View(index, (32, 32), False))
        torch.testing.assert_close(found[index], parts.posterior(pixels[None]).parameters[0])


class Traveller(nn.Module):
    """A module that says where it is."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped, self.config, self.moves = wrapped, wrapped.config, []

    def encode(self, *arguments):
        return self.wrapped.encode(*arguments)

    def forward(self, *arguments):
        return self.wrapped(*arguments)

    def to(self, device):
        self.moves.append(str(device))
        return self


@pytest.mark.parametrize(
    ("settings", "leaving"),
    [
        (CACHED, ["vae", "text_encoder"]),
        ({**CACHED, "cache_latents": "no"}, ["text_encoder"]),
        ({**CACHED, "cache_text_embeddings": "no"}, ["vae"]),
        ({"max_train_steps": 1}, []),  # auto: each image would be used once
        ({"max_train_steps": 9}, ["vae", "text_encoder"]),
    ],
)
def test_encoders_leave_the_device_once_everything_is_cached(model, parts, settings, leaving):
    modules = {"vae": Traveller(parts.vae), "text_encoder": Traveller(parts.text_encoders["text_encoder"])}
    parts = SimpleNamespace(**{name: getattr(parts, name) for name in vars(parts)} | {"vae": modules["vae"]})
    parts = Parts(**{**vars(parts), "text_encoders": {"text_encoder": modules["text_encoder"]}})
    given = {**settings, "resolution": 32}
    square = Stream("instance", training(Images(photo((64, 64))), random_flip=False), "a cross")
    examples = prepare_examples(context_of(**given), model, parts, (square,))
    assert [name for name, module in modules.items() if module.moves == ["cpu"]] == leaving
    (example,) = examples[0]
    assert ("posterior" in example, "encodings" in example) == ("vae" in leaving, "text_encoder" in leaving)


def test_encoders_come_back_while_images_are_generated(parts, monkeypatch):
    away = Traveller(parts.vae)
    here = Parts(**{**vars(parts), "vae": away, "device": torch.device("meta")})
    with evaluating(Parts(**{**vars(here), "text_encoders": {}})):
        assert away.moves == ["meta"]
    assert away.moves == ["meta", "cpu"]
