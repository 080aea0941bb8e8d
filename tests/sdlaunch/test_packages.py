"""Missing and broken packages, and the command that installs them."""

import os
import sys

from sdlaunch import packages


def test_the_command_has_the_pinned_versions():
    pins = packages.pinned_versions("", "-torch")
    assert packages.install_command(["pillow", "torch", "no-such-package"]) == (
        f"{sys.executable} -m pip install pillow=={pins['pillow']} torch=={pins['torch']} no-such-package"
    )


def test_every_package_is_pinned():
    assert {*packages.PACKAGES.values()} <= packages.pinned_versions("", "-torch").keys()


def test_a_broken_package_is_named_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("raise OSError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "PACKAGES", {"broken_one": "broken-one", "json": "j", "no_such": "n"})
    (problem,) = packages.broken({**os.environ, "PYTHONPATH": str(tmp_path)}, 60)
    assert problem.code == 69
    assert problem.found == (
        "broken-one is installed, but cannot be imported "
        "(OSError: libGL.so.1: cannot open shared object file)"
    )
    assert "pip install broken-one --force-reinstall" in problem.remedy


def test_packages_that_fail_for_another_one_are_not_named(tmp_path, monkeypatch):
    (tmp_path / "first_one.py").write_text("raise OSError('libcudart.so.12')")
    (tmp_path / "second_one.py").write_text("import first_one")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "PACKAGES", {"first_one": "first", "second_one": "second"})
    (problem,) = packages.broken({**os.environ, "PYTHONPATH": str(tmp_path)}, 60)
    assert problem.found.startswith("first is installed")
