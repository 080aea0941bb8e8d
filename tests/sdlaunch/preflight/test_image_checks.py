"""Tests of the check of images: which are decoded before a job starts, and what unusable ones mean."""

import shutil

import pytest

from sdlaunch.preflight import image_checks
from tests.support.launcher import prepare

BROKEN = (3, 40, 66)


@pytest.fixture
def many(workspace, tmp_path):
    """The place with 70 images, of which three are broken; the sample of four sees none of them."""
    folder = tmp_path / "dataset/images"
    for number in range(5, 70):
        shutil.copy(folder / "0.png", folder / f"{number:02}.png")
    for number in range(5):
        (folder / f"{number}.png").rename(folder / f"{number:02}.png")
    for number in BROKEN:
        (folder / f"{number:02}.png").write_bytes((folder / f"{number:02}.png").read_bytes()[:40])
    return workspace


def names(job) -> list[str]:
    return [problem.subject[-6:] for problem in job.problems]


def test_of_many_images_a_sample_is_decoded_unless_all_are_asked_for(many):
    assert names(prepare(many)) == []
    assert names(prepare(many, verify_images="all")) == ["03.png", "40.png", "66.png"]
    assert names(prepare(many, verify_images="none")) == []


def test_of_few_images_all_are(many, monkeypatch):
    monkeypatch.setattr(image_checks, "ALL_OF", 70)
    assert names(prepare(many)) == ["03.png", "40.png", "66.png"]


def test_with_skip_as_many_as_may_be_passed_over_are_a_warning(many):
    given = {"verify_images": "all", "bad_samples": "skip"}
    job = prepare(many, **given, max_bad_samples="3")
    assert job.problems == ()
    (warning,) = job.warnings
    assert warning.startswith("DATASET_DIR: 3 of 70 checked images cannot be used and are skipped: ")
    assert names(prepare(many, **given, max_bad_samples="2")) == ["03.png", "40.png", "66.png"]


def test_what_there_was_no_time_for_is_left_to_the_worker(many, monkeypatch):
    monkeypatch.setattr(image_checks, "_KEPT", 2.0)
    job = prepare(many, verify_images="all")
    assert job.problems == ()
    assert job.warnings == (
        "DATASET_DIR: 0 of 70 images checked within check_timeout=60; the others are checked when the job starts",
    )


def test_a_number_of_repeats_in_a_folders_name_is_not_read(workspace, tmp_path):
    assert not any("repeats" in warning for warning in prepare(workspace).warnings)
    (tmp_path / "dataset/images").rename(tmp_path / "dataset/10_sks dog")
    job = prepare(workspace)
    assert job.problems == ()
    (warning,) = [warning for warning in job.warnings if "repeats" in warning]
    assert "the 10 of 10_sks dog" in warning
