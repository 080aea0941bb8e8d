"""Buckets: every batch of one shape, every image as often as the others, on any number of processes."""

from collections import Counter
from dataclasses import replace
from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtrain.data.buckets import bucketed, nearest, sizes_of, turn_of
from sdtrain.data.sampling import Stretch, prolonged

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


def test_a_image_goes_where_least_of_it_is_lost():
    sizes = sizes_of(512, 64)

    def kept(image, size):
        image, size = image[0] / image[1], size[0] / size[1]
        return min(image / size, size / image)

    for image in [(4000, 3000), (3000, 4000), (1920, 1080), (700, 690), (90, 30), (10_000, 100)]:
        assert kept(image, sizes[nearest(image, sizes)]) == max(kept(image, size) for size in sizes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 300))
def test_turns_are_shared_out_in_proportion(weights, start):
    """Against the method itself, step by step: the next turn is that of the largest weight / (2 turns + 1)."""
    done = [0] * len(weights)
    for step in range(start + 20):
        bucket = min(range(len(weights)), key=lambda b: ((2 * done[b] + 1) / weights[b], b))
        if step >= start:
            assert turn_of(step, tuple(weights)) == (bucket, done[bucket])
        done[bucket] += 1


def test_a_step_has_one_shape_and_an_epoch_has_every_image():
    buckets = bucketed(PHOTOS, 64, 8, seed=3, stream="captioned", global_batch=4)
    places = range(4 * len(PHOTOS))  # as many steps as images: whole turns for every bucket
    samples = [buckets.sample_at(place) for place in places]
    for step in range(len(PHOTOS)):
        assert len({sample.size for sample in samples[4 * step : 4 * step + 4]}) == 1
    assert all(sample.size in buckets.of(sample.index) for sample in samples)
    assert Counter(sample.index for sample in samples) == dict.fromkeys(range(len(PHOTOS)), 4)
    # No two samples have the same random numbers.
    assert len({(sample.epoch, sample.position) for sample in samples}) == len(samples)


def test_seed_and_epoch_decide_the_order():
    one, same, other = (
        [
            bucketed(PHOTOS, 64, 8, seed, "captioned", global_batch=1).sample_at(place).index
            for place in range(2 * len(PHOTOS))
        ]
        for seed in (3, 3, 4)
    )
    assert one == same != other
    assert one[: len(PHOTOS)] != one[len(PHOTOS) :]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=4))
def test_after_a_change_of_the_batch_no_image_is_missed_and_none_comes_again(stretches):
    """Each bucket goes on with the very next of its samples, and each step still has one shape."""
    seen, past, place = [], (), 0
    for steps, batch in stretches:
        buckets = replace(bucketed(PHOTOS, 64, 8, 3, "captioned", batch), past=past)
        for _ in range(steps):
            samples = [buckets.sample_at(place + within) for within in range(batch)]
            assert len({sample.size for sample in samples}) == 1
            seen += samples
            place += batch
        past = prolonged(past, steps, batch)
    alone = bucketed(PHOTOS, 64, 8, seed=3, stream="captioned", global_batch=1)
    for number, size in enumerate(alone.sizes):
        mine = [sample for sample in seen if sample.size == size]
        endless = (sample for sample in map(alone.sample_at, count()) if sample.size == size)
        assert mine == list(islice(endless, len(mine))), number


def test_the_past_of_a_run_that_goes_on_alike_is_one_stretch():
    past = prolonged(prolonged(prolonged((), 3, 4), 2, 4), 5, 8)
    assert past == (Stretch(5, 4), Stretch(5, 8))
