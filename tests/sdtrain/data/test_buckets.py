"""Buckets: every batch of one shape, every image as often as the others, on any number of processes."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtrain.data.buckets import Buckets, bucketed, nearest, sizes_of
from sdtrain.data.streams import StreamSet

PHOTOS = [(400, 300)] * 7 + [(300, 400)] * 4 + [(512, 512)] * 2 + [(1000, 300)]


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (64, 8), (512, 8)])
def test_sizes(resolution, step):
    sizes = sizes_of(resolution, step)
    assert (resolution, resolution) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0
        assert resolution / 2 <= min(width, height) and max(width, height) <= 2 * resolution
        # About the pixels of the square: never more, and one step of the shorter side would be.
        assert width * height <= resolution**2 < max(width, height) * (min(width, height) + step)


@pytest.mark.parametrize(
    ("resolution", "step", "sizes"),
    [
        (16, 8, [(8, 24), (8, 32), (16, 16), (24, 8), (32, 8)]),
        (
            8,
            1,
            [
                *((4, 13), (4, 14), (4, 15), (4, 16), (5, 11), (5, 12), (6, 10), (7, 9), (8, 8)),
                *((9, 7), (10, 6), (11, 5), (12, 5), (13, 4), (14, 4), (15, 4), (16, 4)),
            ],
        ),
    ],
)
def test_every_size_from_half_to_twice_the_resolution(resolution, step, sizes):
    found = sizes_of(resolution, step)
    assert found == sizes
    assert {type(side) for size in found for side in size} == {int}


def test_an_image_goes_where_least_of_it_is_lost():
    sizes = sizes_of(512, 64)

    def kept(image, size):
        image, size = image[0] / image[1], size[0] / size[1]
        return min(image / size, size / image)

    for image in [(4000, 3000), (3000, 4000), (1920, 1080), (700, 690), (90, 30), (10_000, 100)]:
        assert kept(image, sizes[nearest(image, sizes)]) == max(kept(image, size) for size in sizes)


def samples_of(buckets, steps):
    """The samples of each of the first steps."""
    batch = buckets.global_batch
    return [[buckets.sample_at(step * batch + i) for i in range(batch)] for step in range(steps)]


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def of_lengths(lengths, batch, seed=3) -> Buckets:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    members = tuple(
        tuple(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)
    )
    sizes = tuple((8 * (number + 1), 8) for number in range(len(lengths)))
    return Buckets(sizes, members, seed, "captioned", batch)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 12))
def test_steps_have_one_shape_and_images_of_a_bucket_come_equally_often(lengths, batch):
    buckets = of_lengths(lengths, batch)
    steps = samples_of(buckets, 3 * sum(lengths) // batch + 3)
    assert all(len({sample.size for sample in step}) == 1 for step in steps)
    samples = [sample for step in steps for sample in step]
    assert all(sample.size in buckets.of(sample.index) for sample in samples)
    # No two samples have the same random numbers.
    assert len({(sample.epoch, sample.position) for sample in samples}) == len(samples)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 4))
def test_an_epoch_trains_on_each_image_but_for_the_remainder_that_is_carried_over(lengths, batch, epochs):
    buckets = of_lengths(lengths, batch)
    steps = sum(epochs * length // batch for length in lengths)
    seen = Counter(sample.index for step in samples_of(buckets, steps) for sample in step)
    for members in buckets.members:
        counts = [seen[index] for index in members]
        assert max(counts) <= epochs and sum(counts) > epochs * len(members) - batch
        assert max(counts) - min(counts) <= 1 + batch // len(members)


def test_the_batches_of_an_epoch_are_shuffled_across_buckets():
    buckets = of_lengths([40, 40], 4)
    shapes = [[step[0].size for step in samples_of(buckets, 40)][20 * e : 20 * e + 20] for e in range(2)]
    assert all(Counter(each) == {(8, 8): 10, (16, 8): 10} for each in shapes)
    assert shapes[0] != shapes[1] and sorted(shapes[0]) != shapes[0]


def test_seed_and_epoch_decide_the_order():
    one, same, other = (
        [
            bucketed(PHOTOS, 64, 8, seed, "captioned", global_batch=1).sample_at(position).index
            for position in range(2 * len(PHOTOS))
        ]
        for seed in (3, 3, 4)
    )
    assert one == same != other
    assert one[: len(PHOTOS)] != one[len(PHOTOS) :]


@pytest.mark.parametrize(
    ("lengths", "batch"), [([20], 20), ([1] * 20, 1)], ids=["images of a bucket", "batches of an epoch"]
)
def test_seed_epoch_and_stream_decide_the_order(lengths, batch):
    every = of_lengths(lengths, batch)
    orders = [
        tuple(buckets.sample_at(20 * epoch + position).index for position in range(20))
        for seed in (3, 4)
        for stream in ("instance", "class")
        for epoch in (0, 1)
        for buckets in [replace(every, seed=seed, stream=stream)]
    ]
    assert len(set(orders)) == 8
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(20))}


def test_a_sample_names_its_stream():
    buckets = bucketed(PHOTOS, 64, 8, 3, "captioned", global_batch=2)
    assert (buckets.stream, buckets.sample_at(5).stream) == ("captioned", "captioned")


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(0, 200))
def test_the_next_epoch_starts_at_or_after_a_position(lengths, batch, position):
    buckets = of_lengths(lengths, batch)
    starts = [batch * sum(epoch * length // batch for length in lengths) for epoch in range(500)]
    assert buckets.next_epoch(position) == next(start for start in starts if start >= position)


def test_another_global_batch_goes_on_at_the_next_epoch():
    examples = StreamSet((), 0, buckets=of_lengths([6, 4], 2))
    assert examples.resume_at(4, 2) == 4
    assert examples.resume_at(0, 5) == 0
    assert examples.resume_at(5, 5) == examples.resume_at(5, 0) == 10
    assert StreamSet((), 0).resume_at(5, 7) == 5


def test_the_buckets_as_they_are_logged():
    assert str(of_lengths([3, 1], 2)) == "8×8: 3, 16×8: 1"
