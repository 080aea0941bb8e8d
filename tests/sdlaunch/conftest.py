import pytest

from tests.sdlaunch.place import make_place


@pytest.fixture
def place(tmp_path):
    """The environment of a job that can start."""
    return make_place(tmp_path)
