"""Scanning all images: values in order, unusable images marked or refused."""

import pytest

from sdjob.problems import JobError, bad_input
from sdtrain.data.scan import filled, scan
from sdtrain.data.streams import Stream
from sdtrain.runtime.stop import Stopped
from tests.sdtrain.data.test_training_images import Images, photo, training
from tests.support.worker import context_of


def read(images, index: int) -> int:
    if index in (1, 4):
        raise JobError(bad_input(f"image {index}", "cannot be read", "replace it"))
    return 10 * index


def scanned(max_bad_samples: int, stop=False):
    images = training(Images(*[photo((40, 30))] * 5), max_bad_samples=max_bad_samples)
    values, stream = scan(
        context_of(stop=stop, first_step=7), Stream("instance", images, ""), "numbers", read
    )
    return values, stream.images


def test_unusable_images_are_marked_and_named(capsys):
    values, images = scanned(max_bad_samples=2)
    assert values == [0, None, 20, 30, None]
    assert sorted(images.bad) == [1, 4]
    assert "will be skipped: image 1: cannot be read" in capsys.readouterr().out


def test_more_than_may_be_skipped_are_refused():
    with pytest.raises(JobError) as caught:
        scanned(max_bad_samples=1)
    assert [problem.subject for problem in caught.value.problems] == ["image 1", "image 4", "max_bad_samples"]


def test_a_stop_names_the_step():
    with pytest.raises(Stopped) as stopped:
        scanned(max_bad_samples=2, stop=True)
    assert stopped.value.step == 7


def test_missing_values_are_those_of_the_next_image():
    assert filled([None, 1, None, None, 2, None]) == [1, 1, 2, 2, 2, 1]
    assert filled([3]) == [3]
