"""How many images are held out: a share, at least one, and at least one is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjob.dataset import validation_split
from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.formats.folder import FOLDER
from tests.support.specs import spec


@pytest.mark.parametrize(
    ("share", "count", "held"), [(0, 10, 0), (0.1, 10, 1), (0.25, 10, 3), (0.01, 5, 1), (0.99, 5, 4)]
)
def test_a_share(share, count, held):
    one = spec(validation_split=share)
    assert (validation_split.held_out(one, count), validation_split.trained_on(one, count)) == (
        held,
        count - held,
    )


@given(st.floats(0.0001, 0.9999), st.integers(2, 10**6))
def test_there_is_always_one_on_each_side(share, count):
    assert 1 <= validation_split.held_out(spec(validation_split=share), count) <= count - 1


def test_one_image_cannot_be_divided(tmp_path):
    info = DatasetInfo(tmp_path, FOLDER, (tmp_path / "a.png",), 1, ("image",), "image", None)
    assert validation_split.problems(spec(), info) == []
    (problem,) = validation_split.problems(spec(validation_split=0.5), info)
    assert (problem.code, problem.subject) == (66, str(tmp_path)) and "has one image" in problem.found
