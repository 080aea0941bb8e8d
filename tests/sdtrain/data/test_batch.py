"""Tests of batch, loader and streams: one tensor of each kind for all streams, the same whoever makes it."""

from dataclasses import fields

import pytest
import torch

from sdtrain.data.batch import Batch, RandomInputs, collated
from sdtrain.data.loader import loader
from sdtrain.data.sampling import BatchShape, Sample
from sdtrain.data.streams import Stream, StreamSet
from tests.sdtrain.data.test_training_images import Images, photo, training

INPUTS = RandomInputs(3, 4, 8, lambda generator: torch.randint(1000, (1,), generator=generator), True, True)
CPU = torch.device("cpu")


def tokenize(prompts):
    return {"text_encoder": torch.tensor([[[len(prompt)]] for prompt in prompts])}


def streams(**options) -> StreamSet:
    photos = [photo((90, 50)), photo((50, 90)), photo((64, 64))]
    instance = Stream("instance", training(Images(*photos)), "a dog", image_weights=(1.0, 2.0, 3.0))
    classes = Stream("class", training(Images(*photos[:2])), "an animal", weight=0.5)
    return StreamSet((instance, classes), 3, random=INPUTS, tokenize=tokenize, **options)


def batches(workers=0, **options) -> list[Batch]:
    return list(loader(streams(**options), BatchShape(2, 1, 1), 0, 0, 3, workers, CPU))


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    nested = {
        name: value for value in values.values() if isinstance(value, dict) for name, value in value.items()
    }
    return {**nested, **{name: value for name, value in values.items() if isinstance(value, torch.Tensor)}}


def assert_same(one: Batch, other: Batch):
    found, wanted = tensors(one), tensors(other)
    assert one.names == other.names and found.keys() == wanted.keys() and len(found) == 8
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_the_samples_of_all_streams_are_in_one_tensor():
    first, *_ = batches()
    assert (first.sizes, first.stream_weights) == ((2, 2), (1.0, 0.5))
    assert first.pixels.shape == (4, 3, 32, 32) and first.pixels.dtype == torch.uint8
    assert {name: tuple(each.shape) for name, each in first.random.items()} == {
        "latent": (4, 4, 4, 4),
        "noise": (4, 4, 4, 4),
        "noise_offset": (4, 4, 1, 1),
        "input_perturbation": (4, 4, 4, 4),
        "timestep": (4,),
    }
    assert first.token_ids["text_encoder"].flatten().tolist() == [5, 5, 9, 9]
    assert len(first.names) == 4 and first.skipped == ()
    order = [int(name.split()[-1]) for name in first.names[:2]]
    assert first.weights.tolist() == [*(float(index + 1) for index in order), 1.0, 1.0]


def test_loader_processes_and_batches_change_no_number():
    for one, other in zip(batches(), batches(workers=2), strict=True):
        assert_same(one, other)
    examples = streams()
    alone = examples.collate([examples[3]])
    second = batches()[1]
    for name, numbers in alone.random.items():
        assert torch.equal(numbers[0], second.random[name][1]) and torch.equal(
            numbers[1], second.random[name][3]
        )


def test_what_is_cached_replaces_its_input():
    first, *_ = batches(
        encodings={"a dog": {"hidden": torch.ones(2)}, "an animal": {"hidden": torch.zeros(2)}}
    )
    assert first.token_ids is None
    assert first.encodings["hidden"][:, 0].tolist() == [1, 1, 0, 0]


def test_random_numbers_depend_on_the_sample_alone():
    sample = Sample(1, 2, 0, "instance")
    first, again = INPUTS.of(sample, (64, 32)), INPUTS.of(sample, (64, 32))
    other = INPUTS.of(Sample(1, 3, 0, "instance"), (64, 32))
    assert first["noise"].shape == (4, 4, 8)
    for name, numbers in first.items():
        assert torch.equal(numbers, again[name])
        assert name == "timestep" or not torch.equal(numbers, other[name])
    assert not torch.equal(first["noise"], first["latent"])


@pytest.mark.parametrize("change", ["to", "pin_memory"])
def test_every_tensor_of_a_batch_moves(change, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    (example,) = streams()[0][:1]
    batch = collated([[example]], [1.0])
    count = 2 + len(batch.random) + len(batch.token_ids)
    if change == "to":
        moved = batch.to(torch.device("meta"))
        everything = [moved.pixels, moved.weights, *moved.random.values(), *moved.token_ids.values()]
        assert {tensor.device.type for tensor in everything} == {"meta"} and len(everything) == count
    else:
        batch.pin_memory()
        assert len(pinned) == count
