"""report.json: versions, and a file that is complete or absent."""

import json

import pytest
import torch

from sdtrain.reporting import report
from tests.support.worker import Killed


def test_a_report_is_complete_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    report.write(path, {"steps": 1})

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(path), "replace", die)
        report.write(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}


def test_versions_include_the_packages_that_results_depend_on():
    assert report.versions()["torch"] == torch.__version__
