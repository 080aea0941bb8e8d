"""Colossal-AI is imported only in a version that was tested with the installed torch."""

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from sdjob.problems import JobError
from sdtrain.strategies import colossalai_import


def installed(monkeypatch, **versions):
    def version(name):
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(colossalai_import, "version", version)


def test_tested_pairs_are_accepted_whatever_the_build_of_torch(monkeypatch):
    colossalai, torch = colossalai_import.TESTED[0]
    installed(monkeypatch, colossalai=colossalai, torch=f"{torch}+cpu")
    colossalai_import.check_versions()


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"torch": "2.13.0"}, "the package colossalai is not installed"),
        ({"colossalai": "0.6.0", "torch": "2.13.0"}, "colossalai 0.6.0 with torch 2.13.0"),
    ],
)
def test_others_are_refused_with_an_alternative(monkeypatch, versions, found):
    installed(monkeypatch, **versions)
    with pytest.raises(JobError) as error:
        colossalai_import.check_versions()
    (problem,) = error.value.problems
    assert (problem.code, problem.subject, problem.found) == (69, "plugin", found)
    assert "plugin=fsdp" in problem.remedy


def test_stubs_of_missing_packages_are_gone_after_the_import():
    before = set(sys.modules)
    with colossalai_import.importable():
        pass
    assert not {"bitsandbytes", "galore_torch"} & (set(sys.modules) - before)
