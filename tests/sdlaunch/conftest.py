import pytest

from sdlaunch.verbs import check
from tests.sdlaunch.workspace import make_workspace


@pytest.fixture(autouse=True)
def no_comparison(monkeypatch):
    """`check` in this process does not start another one with torch; test_check.py tests that."""
    monkeypatch.setattr(check, "_answer", lambda *_: ((), ()))


@pytest.fixture
def workspace(tmp_path):
    """The environment of a job that can start."""
    return make_workspace(tmp_path)
