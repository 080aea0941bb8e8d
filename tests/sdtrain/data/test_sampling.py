"""The order of samples and their random numbers: the same whoever computes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtrain.data.sampling import (
    BatchShape,
    Sample,
    generator,
    permutation,
    rank_batches,
    sample_at,
    sample_generator,
)


def places(per_device, accumulation, size, first, steps):
    """Optimizer step → the places that all ranks together train on."""
    shape = BatchShape(per_device, accumulation, size)
    ranks = [list(rank_batches(shape, rank, first, steps)) for rank in range(size)]
    assert all(len(batches) == steps * accumulation for batches in ranks)
    assert all(len(batch) == per_device for batches in ranks for batch in batches)
    return [
        [
            place
            for batches in ranks
            for batch in batches[k * accumulation : (k + 1) * accumulation]
            for place in batch
        ]
        for k in range(steps)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 50), st.integers(1, 4))
def test_ranks_share_out_the_places_of_each_step(per_device, accumulation, size, first, steps):
    batch = per_device * accumulation * size
    for k, found in enumerate(places(per_device, accumulation, size, first, steps)):
        start = first + k * batch
        assert sorted(found) == list(range(start, start + batch))


def test_no_two_ranks_have_the_same_batch():
    shape = BatchShape(2, 2, 4)
    batches = [tuple(batch) for rank in range(4) for batch in rank_batches(shape, rank, 0, 3)]
    assert len(set(batches)) == len(batches)


def test_micro_batches_come_in_the_same_order_on_any_number_of_processes():
    alone = list(rank_batches(BatchShape(1, 4, 1), 0, 0, 2))
    first, second = (list(rank_batches(BatchShape(1, 2, 2), rank, 0, 2)) for rank in (0, 1))
    assert [batch for pair in zip(first, second, strict=True) for batch in pair] == alone


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_each_epoch_has_every_example_once(length, epoch, seed):
    samples = [sample_at(seed, length, epoch * length + i, "captioned") for i in range(length)]
    assert sorted(sample.index for sample in samples) == list(range(length))
    assert [(sample.epoch, sample.position) for sample in samples] == [(epoch, i) for i in range(length)]


def test_order_differs_by_epoch_seed_and_stream_and_by_nothing_else():
    orders = [
        tuple(permutation(seed, epoch, 20, stream).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
        for stream in ("instance", "class")
    ]
    assert len(set(orders)) == 8
    permutation.cache_clear()
    torch.manual_seed(123)
    assert tuple(permutation(0, 0, 20, "instance").tolist()) == orders[0]


@pytest.mark.parametrize(
    "other", [(2, 0, 0, "noise"), (1, 1, 0, "noise"), (1, 0, 1, "noise"), (1, 0, 0, "crop")], ids=str
)
def test_every_part_of_the_key_changes_the_numbers(other):
    first = torch.rand(4, generator=generator(1, 0, 0, "noise"))
    assert not torch.equal(first, torch.rand(4, generator=generator(*other)))


def test_generator_neither_reads_nor_moves_the_global_state(monkeypatch):
    state = torch.random.get_rng_state()
    first = torch.rand(4, generator=generator(1, 2, 3, "noise"))
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.setenv("RANK", "3")
    torch.rand(5)
    assert torch.equal(torch.rand(4, generator=generator(1, 2, 3, "noise")), first)


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ((1, 2, 3, "noise"), 8042806248016514185),
        ((42, 0, 0, "timestep"), 2468173514125576985),
        ((42, 7, 1000, "crop"), 5093075760213709665),
    ],
)
def test_the_numbers_of_a_sample_never_change(key, number):
    """A run of an earlier version resumes with the same numbers."""
    assert generator(*key).initial_seed() == number


def test_a_sample_has_numbers_for_each_purpose_and_stream():
    found = sample_generator(1, Sample(2, 3, 9, "class"), "noise")
    assert found.initial_seed() == generator(1, 2, 3, "noise/class").initial_seed()


def test_the_samples_of_an_epoch_are_its_permutation():
    permutation.cache_clear()
    found = [sample_at(7, 10, 10 + position, "captioned") for position in range(10)]
    order = permutation(7, 1, 10, "captioned").tolist()
    assert found == [Sample(1, position, index, "captioned") for position, index in enumerate(order)]
