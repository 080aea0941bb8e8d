"""Tests of the arithmetic of batch and length."""

import pytest

from sdjob.settings import steps
from tests.support.specs import spec


def test_a_step_sees_batch_times_accumulation_times_processes():
    assert steps.global_batch(spec(train_batch_size=2, gradient_accumulation_steps=3), 4) == 24


def test_a_batch_with_prior_preservation_has_as_many_images_of_the_class():
    assert steps.images_of_batch(spec(train_batch_size=3)) == 3
    assert steps.images_of_batch(spec(train_batch_size=3, with_prior_preservation=True)) == 6


@pytest.mark.parametrize(
    ("values", "by_epochs"),
    [
        ({}, False),
        ({"num_train_epochs": 2}, True),
        ({"num_train_epochs": 2, "max_train_steps": 9}, False),
        ({"max_train_steps": 9}, False),
    ],
)
def test_a_number_of_steps_comes_before_epochs(values, by_epochs):
    assert steps.by_epochs(spec(**values)) is by_epochs


@pytest.mark.parametrize(
    ("epochs", "before", "expected"),
    [
        (1, {}, 5),  # 10 images in batches of 2
        (3, {}, 15),
        (2, {"step": 4, "samples": 8}, 10),  # with the same batch
        (2, {"step": 2, "samples": 9}, 8),  # 11 images are left: the last step reaches into the next pass
        (1, {"step": 9, "samples": 18}, 9),  # nothing is left
    ],
)
def test_the_steps_of_epochs(epochs, before, expected):
    assert steps.steps_of(epochs, spec(train_batch_size=2), 10, 1, **before) == expected
    assert steps.steps_of(1, spec(), 3, 1) == 3
