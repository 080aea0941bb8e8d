"""Tests of the check of images: which are decoded before a job starts, and what unusable ones mean."""

import json
import shutil

import pytest
from PIL import Image, ImageOps

from sdlaunch.preflight import image_checks
from tests.support import icc
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


@pytest.fixture
def class_images(tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(6):
        shutil.copy(tmp_path / "dataset/images/0.png", folder / f"{number}.png")
    return folder


def with_classes(workspace, folder, number=6, **given):
    prior = {"with_prior_preservation": "1", "class_prompt": "a dog", "num_class_images": str(number)}
    return prepare(workspace, class_data_dir=str(folder), **prior, **given)


def test_class_images_are_counted_and_decoded(workspace, class_images):
    assert with_classes(workspace, class_images).problems == ()
    (problem,) = with_classes(workspace, class_images, 7).problems
    assert problem.subject == "class_data_dir"
    assert problem.found == f"6 images in {class_images}, num_class_images=7"
    (class_images / "4.png").write_bytes(b"nothing")
    (class_images / "5.png").unlink()
    (class_images / "5.png").symlink_to("not there")
    job = with_classes(workspace, class_images)
    assert names(job) == ["/4.png", "/5.png"] and {problem.code for problem in job.problems} == {66}
    assert "is a link to not there" in job.problems[1].found
    assert with_classes(workspace, class_images, 4).problems == (), "the others are not used"
    job = with_classes(workspace, class_images, bad_samples="skip", max_bad_samples="2")
    assert job.problems == ()
    (warning,) = [each for each in job.warnings if "class_data_dir" in each]
    assert warning.startswith("class_data_dir: 2 of 6 checked images cannot be used and are skipped: ")


def test_class_images_of_a_list_of_subjects_are_checked_too(workspace, class_images, tmp_path):
    concepts = tmp_path / "dataset/concepts.yaml"
    subject = {"instance_data_dir": "images", "instance_prompt": "sks", "class_prompt": "a dog"}
    concepts.write_text(json.dumps([{**subject, "class_data_dir": str(class_images)}]))
    given = {"concepts_list": str(concepts), "with_prior_preservation": "1", "num_class_images": "7"}
    (problem,) = prepare(workspace, **given).problems
    assert problem.found == f"6 images in {class_images}, num_class_images=7"
    (class_images / "4.png").write_bytes(b"nothing")
    assert names(prepare(workspace, **{**given, "num_class_images": "6"})) == ["/4.png"]


def test_held_out_images_are_decoded(workspace, class_images):
    given = {"validation_data_dir": str(class_images), "validation_steps": "1"}
    assert prepare(workspace, **given).problems == ()
    (class_images / "3.png").write_bytes(b"")
    job = prepare(workspace, **given)
    assert names(job) == ["/3.png"] and "is empty" in job.problems[0].found


def test_what_images_are_read_as_is_said(workspace, tmp_path):
    folder = tmp_path / "dataset/images"
    with Image.open(folder / "0.png") as image:
        image.load()
    image.save(folder / "0.png", icc_profile=icc.rgb("Display P3", icc.P3, icc.SRGB_CURVE))
    image.save(folder / "1.png", icc_profile=b"damaged")
    image.save(folder / "2.gif", save_all=True, append_images=[ImageOps.invert(image)])
    job = prepare(workspace)
    count = len(list(folder.iterdir()))
    assert job.problems == ()
    assert [note for note in job.arithmetic if "sRGB" in note] == [
        f"DATASET_DIR: 1 of {count} images looked at are converted to sRGB from Display P3: {folder}/0.png"
    ]
    assert [warning for warning in job.warnings if "looked at" in warning] == [
        f"DATASET_DIR: 1 of {count} images looked at have a color profile that cannot be used, and are read as sRGB: "
        f"{folder}/1.png",
        f"DATASET_DIR: 1 of {count} images looked at hold several frames or pages, of which the first is used: "
        f"{folder}/2.gif",
    ]


def test_a_number_of_repeats_in_a_folders_name_is_not_read(workspace, tmp_path):
    assert not any("repeats" in warning for warning in prepare(workspace).warnings)
    (tmp_path / "dataset/images").rename(tmp_path / "dataset/10_sks dog")
    job = prepare(workspace)
    assert job.problems == ()
    (warning,) = [warning for warning in job.warnings if "repeats" in warning]
    assert "the 10 of 10_sks dog" in warning
