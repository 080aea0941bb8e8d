"""The plan says which split is used and what is left out; what looks like data and is not used is a warning."""

import shutil

import pytest

from tests.support.datasets import jsonl, parquet, table, write_image
from tests.support.launcher import prepare


@pytest.fixture
def found(workspace, tmp_path):
    """The lines of the plan, the warnings and the problems about a dataset."""

    def check(**settings):
        job = prepare(workspace | {"DATASET_DIR": str(tmp_path / "data")}, verify_images="none", **settings)
        lines = [line for line in job.arithmetic if line.startswith("dataset: ")]
        return lines, [each for each in job.warnings if "not used" in each], list(job.problems)

    return check


def test_splits_are_lines_of_the_plan(found, tmp_path):
    parquet(tmp_path / "data/train-00000-of-00001.parquet", table(3))
    parquet(tmp_path / "data/test-00000-of-00001.parquet", table(4))
    line = "dataset: split train, 3 images; left out: 1 table of the split test: test-00000-of-00001.parquet (4 rows)"
    assert found(recipe="text_to_image") == ([line], [], [])
    (line,), warnings, problems = found(recipe="text_to_image", dataset_split="TEST")
    assert line.startswith("dataset: split test, 4 images; left out: 1 table of the split train")
    assert warnings == problems == []


def test_a_dataset_without_splits_needs_no_line(found, tmp_path):
    write_image(tmp_path / "data/a.png")
    assert found() == ([], [], [])
    _, _, (problem,) = found(dataset_split="test")
    assert problem.code == 64 and problem.subject == "dataset_split" and "no name in" in problem.found


def test_unused_images_are_warnings(found, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / "data" / name)
    jsonl(tmp_path / "data", {"file_name": "a.png", "text": "x"})
    _, (warning,), _ = found(recipe="text_to_image")
    assert warning == (
        f"DATASET_DIR: not used of {tmp_path / 'data'}: 2 images without a line in metadata.jsonl: b.png, c.png"
    )


def test_what_is_next_to_a_named_folder_is_not_searched(found, tmp_path):
    for name in ("one/a.png", "two/b.png"):
        write_image(tmp_path / "data" / name)
    assert found(dataset_name="one") == ([], [], [])
    shutil.rmtree(tmp_path / "data/two")
    assert found() == ([], [], [])


def test_each_subject_of_a_list_is_searched(found, tmp_path):
    for name in ("cat/a.png", "cat/more/b.png", "dog/c.png"):
        write_image(tmp_path / "data" / name)
    listed = tmp_path / "concepts.yaml"
    listed.write_text(
        "".join(f"- {{instance_data_dir: data/{n}, instance_prompt: a {n}}}\n" for n in ("cat", "dog"))
    )
    _, (warning,), _ = found(concepts_list=str(listed))
    assert warning.startswith(f"DATASET_DIR: not used of {tmp_path / 'data/cat'}: 1 image in folders below")
