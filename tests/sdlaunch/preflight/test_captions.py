"""Tests of the check of captions: some empty ones are a warning, all of them a problem."""

import pytest

from sdlaunch.preflight import captions
from tests.support.launcher import prepare


def findings(workspace, tmp_path, *texts):
    for number in range(5):
        (tmp_path / f"dataset/images/{number}.txt").write_text(texts[number % len(texts)])
    job = prepare(workspace, recipe="text_to_image")
    return [problem.found for problem in job.problems], [text for text in job.warnings if "captions" in text]


@pytest.mark.parametrize(("limit", "checked"), [(2000, "2 of 5"), (3, "1 of the first 3")])
def test_some_empty_captions_are_a_warning(workspace, tmp_path, monkeypatch, limit, checked):
    monkeypatch.setattr(captions, "SAMPLED_CAPTIONS", limit)
    problems, (warning,) = findings(workspace, tmp_path, "a cat", " ")
    assert problems == []
    assert warning == (
        f"DATASET_DIR: {checked} captions are empty: their images are trained on without a prompt"
    )


def test_only_empty_captions_are_a_problem(workspace, tmp_path):
    (found,), _ = findings(workspace, tmp_path, " ")
    assert found.endswith("all of 5 captions are empty")


def test_captions_that_say_something_are_not_mentioned(workspace, tmp_path):
    assert findings(workspace, tmp_path, "a cat") == ([], [])
