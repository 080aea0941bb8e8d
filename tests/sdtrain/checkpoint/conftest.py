import pytest

from sdjob.output.layout import OutputLayout


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "out").mkdir()
    return OutputLayout(tmp_path / "out")
