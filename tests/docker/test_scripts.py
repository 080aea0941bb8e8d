"""Tests of all shell scripts: they pass the linter."""

import pytest

from tests.sdlaunch.emit.emitted import shellcheck
from tests.sdlaunch.workspace import HOME


@pytest.mark.parametrize(
    "script", [HOME / "train.sh", *sorted((HOME / "docker").glob("*.sh"))], ids=lambda path: path.name
)
def test_shell_scripts_pass_the_linter(script):
    assert shellcheck(script.read_text()) == ""


def test_the_linter_finds_something():
    assert "SC2086" in shellcheck("cp $1 /output\n")
