"""Tests of the check of captions: empty ones, those that a recipe ignores, and columns that do not exist."""

import pytest

from sdlaunch.preflight import captions
from tests.support.datasets import parquet, table
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


def warnings(workspace, subject, **variables):
    job = prepare(workspace, **variables)
    assert job.problems == ()
    return [text for text in job.warnings if text.startswith(f"{subject}: ")]


def test_captions_of_images_that_share_a_prompt_are_ignored_with_a_warning(workspace, tmp_path):
    images = tmp_path / "dataset/images"
    assert warnings(workspace, "DATASET_DIR") == []
    (images / "notes.txt").write_text("not a caption")
    assert warnings(workspace, "DATASET_DIR") == []
    (images / "0.txt").write_text("a cat")
    ignored = (
        f"DATASET_DIR: the captions in {images} are ignored: with recipe=dreambooth each image has the prompt of its "
        "subject; to train on captions use recipe=text_to_image"
    )
    assert warnings(workspace, "DATASET_DIR") == [ignored]
    (images / "0.txt").unlink()
    (images / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n')
    assert warnings(workspace, "DATASET_DIR") == [ignored]


def test_captions_in_a_column_are_ignored_with_a_warning(workspace, tmp_path):
    data = tmp_path / "tables"
    parquet(data / "train.parquet", table(5))
    where = {"DATASET_DIR": str(data)}
    (ignored,) = warnings(workspace, "DATASET_DIR", **where)
    assert "are ignored" in ignored
    assert warnings(workspace, "DATASET_DIR", **where, caption_column="other") == []
    (unused,) = warnings(workspace, "caption_column", **where, caption_column="other")
    assert unused == "caption_column: no effect without recipe=text_to_image"


def test_columns_of_a_dataset_without_columns(workspace, tmp_path):
    for number in range(5):
        (tmp_path / f"dataset/images/{number}.txt").write_text("a cat")
    captioned = {"recipe": "text_to_image", "caption_column": "caption"}
    assert warnings(workspace, "caption_column", **captioned) == [
        "caption_column: 'caption' has no effect with a folder of images (jpg, png, webp, avif, tiff, …)"
    ]
    assert len(warnings(workspace, "image_column", image_column="picture")) == 1
    assert warnings(workspace, "image_column") == []
