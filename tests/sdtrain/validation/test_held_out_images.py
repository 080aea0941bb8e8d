"""Which images are held out: a function of the seed and of each dataset."""

import pytest

from sdjob.settings.run_spec import RunSpec
from sdtrain.validation.held_out_images import split


def held_out(counts, **settings):
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", **{"validation_split": 0.2, **settings})
    training, held_out = split(spec, counts)
    assert sorted([*training, *held_out]) == list(range(sum(counts))) and training == sorted(training)
    return held_out


def test_the_seed_decides():
    assert held_out([100]) == held_out([100]) != held_out([100], seed=1)


def test_datasets_alternate():
    assert [index >= 100 for index in held_out([100, 10])] == [False, True, False, True] + [False] * 18


def test_other_datasets_change_nothing():
    assert held_out([100]) == [index for index in held_out([100, 10]) if index < 100]


@pytest.mark.parametrize(("count", "number"), [(2, 1), (4, 1), (10, 2)])
def test_at_least_one_image_is_held_out(count, number):
    assert len(held_out([count])) == number
