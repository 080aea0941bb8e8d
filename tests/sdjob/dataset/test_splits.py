"""Splits by the names of files and folders, in every format: the training split, and never another in silence."""

import shutil

import pytest

from sdjob.dataset import splits
from sdjob.dataset.detect import find_dataset
from sdjob.problems import JobError
from tests.support.datasets import captions, find, jsonl, only, parquet, table, write_image


def find_split(root, *wanted, captions=True):
    names = {"image_column": "image", "caption_column": "text"}
    return find_dataset(root, None, captions=captions, wanted_splits=wanted, **names)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/test-00000-of-00001.parquet", "test"),
        ("my_dataset_TEST.csv", "test"),
        ("My Data Testing", "test"),
        ("Train", "train"),
        ("training_images", "train"),
        ("validation", "validation"),
        ("x.valid.parquet", "validation"),
        ("val2017", "validation"),
        ("dev-clean", "validation"),
        ("EVAL", "validation"),
        ("evaluation/0000.parquet", "validation"),
        ("contest", ""),
        ("latest", ""),
        ("testament.parquet", ""),
        ("greatest-test", "test"),
        ("device", ""),
        ("train_test.parquet", "test+train"),
        ("my-test-set-train-00000-of-00002-a1b2.parquet", "train"),
        ("test_data/train/0000.parquet", "train"),
        ("train/test_0.parquet", "test"),
    ],
)
def test_a_split_is_a_word_between_separators(name, split):
    assert splits.split_of(name) == split


def test_what_is_wanted_of_names():
    def kept(names, *wanted):
        choice = splits.choose(names, wanted or splits.TO_TRAIN)
        return choice and (choice.names, choice.split)

    assert kept(["a.parquet", "train.parquet", "val-1.parquet"]) == (("train.parquet",), "train")
    assert kept(["testament.parquet", "test.parquet"]) == (("testament.parquet",), "")
    assert kept(["Train_0", "train_1"]) == (("Train_0", "train_1"), "train")
    assert kept(["test", "val"]) is None and kept(["train_test"]) is None
    assert kept(["test", "val", "train"], *splits.HELD_OUT) == (("val",), "validation")
    assert kept(["train"], *splits.HELD_OUT) is None
    assert kept(["test", "train"], *splits.by_setting("Testing")) == (("test",), "test")
    assert kept(["train_test", "val"], *splits.by_setting("train")) == (("train_test",), "train")
    assert kept(["a", "b"], *splits.by_setting("B")) == (("b",), "b")
    assert kept(["0000.parquet"], *splits.by_setting("test")) == (
        ("0000.parquet",),
        "",
    )  # in the folder "test"
    assert kept(["val"], *splits.by_setting("test")) is None


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "validation"), ("my_TRAIN_data", "Testing")])
@pytest.mark.parametrize("kind", ["images", "text files", "metadata", "parquet"])
def test_folders_named_after_splits(tmp_path, names, kind):
    for name, count in zip(names, (3, 2), strict=True):
        folder = tmp_path / "set" / name
        if kind == "parquet":
            parquet(folder / "0000.parquet", table(count))
            continue
        for number in range(count):
            write_image(folder / f"{number}.png")
            if kind == "text files":
                (folder / f"{number}.txt").write_text(f"caption {number}")
        if kind == "metadata":
            jsonl(folder, *({"file_name": f"{number}.png", "text": "x"} for number in range(count)))
    info = find(tmp_path, captions=kind != "images")
    assert (info.path.name, info.num_examples, info.split) == (names[0], 3, "train")
    other = find_split(tmp_path, splits.split_of(names[1]), captions=kind != "images")
    assert (other.path.name, other.num_examples, other.split) == (names[1], 2, splits.split_of(names[1]))


def test_shards_named_after_splits(tmp_path):
    parquet(tmp_path / "Latest-Test-00000-of-00001.PARQUET", table(1))
    parquet(tmp_path / "Latest-Train-00000-of-00001.PARQUET", table(2))
    parquet(tmp_path / "more.parquet", table(4))
    assert (find(tmp_path).num_examples, find(tmp_path).split) == (2, "train")
    assert find_split(tmp_path, "test").num_examples == 1


def test_metadata_that_lists_the_images_of_all_splits(tmp_path):
    names = ("Train/a.png", "Train/b.png", "test/c.png", "val/test me.png")
    for name in names:
        write_image(tmp_path / name)
    jsonl(tmp_path, *({"file_name": name, "text": f"of {name}"} for name in names))
    info = find(tmp_path)
    assert [path.name for path in info.files] == ["a.png", "b.png"] and info.split == "train"
    assert captions(tmp_path) == ["of Train/a.png", "of Train/b.png"]
    shutil.rmtree(tmp_path / "Train")
    jsonl(tmp_path, *({"file_name": name, "text": "x"} for name in names[2:]))
    problem = only(tmp_path)
    assert "other splits only: test, val (the splits test, validation)" in problem.found
    assert "dataset_split=" in problem.remedy
    assert [path.name for path in find_split(tmp_path, "validation").files] == ["test me.png"]


def test_a_saved_dataset_of_several_splits(tmp_path):
    import datasets

    data = datasets.Dataset.from_dict({"image": [b"x"] * 3, "text": ["a", "b", "c"]})
    datasets.DatasetDict({"Training": data, "holdout_TEST": data.select([0])}).save_to_disk(tmp_path / "a")
    assert (find(tmp_path / "a").num_examples, find(tmp_path / "a").split) == (3, "train")
    assert find_split(tmp_path / "a", "test").num_examples == 1
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "b")
    assert "dataset_split=test" in only(tmp_path / "b").remedy
    datasets.DatasetDict({"a": data, "b": data.select([0])}).save_to_disk(tmp_path / "c")
    assert "dataset_split=a" in only(tmp_path / "c").remedy
    other = find_split(tmp_path / "c", "b")
    assert (other.num_examples, other.split) == (1, "b")


def test_everything_named_as_a_test_is_refused_unless_it_is_named_in_a_setting(tmp_path):
    write_image(tmp_path / "my test" / "a.png")
    problem = only(tmp_path, captions=False)
    assert "other splits only: my test" in problem.found and "dataset_split=test" in problem.remedy
    assert find(tmp_path, "my test", captions=False).num_examples == 1
    assert find_split(tmp_path, "test", captions=False).num_examples == 1
    with pytest.raises(JobError, match="no split train"):
        find_split(tmp_path, "train", captions=False)


def test_only_the_path_below_the_mount_counts(tmp_path):
    write_image(tmp_path / "test" / "pictures" / "a.png")
    assert find(tmp_path / "test", captions=False).num_examples == 1


def test_held_out_images_are_never_the_training_split(tmp_path):
    for split in ("train", "validation"):
        write_image(tmp_path / split / f"{split}.png")
    held_out = find_split(tmp_path, *splits.HELD_OUT, captions=False)
    assert held_out.path.name == "validation"
    shutil.rmtree(tmp_path / "validation")
    with pytest.raises(JobError, match="other splits only"):
        find_split(tmp_path, *splits.HELD_OUT, captions=False)


def test_a_split_of_any_name_is_chosen_by_a_setting(tmp_path):
    for name, count in (("warm", 2), ("cold", 1)):
        parquet(tmp_path / "folders" / name / "0000.parquet", table(count))
        parquet(tmp_path / "files" / f"{name}-00000-of-00001.parquet", table(count))
    for kind in ("folders", "files"):
        info = find_split(tmp_path / kind, *splits.by_setting("Cold"))
        assert (info.num_examples, info.split) == (1, "cold")
    assert find_split(tmp_path / "folders" / "cold", "cold").split == ""  # as the worker sees it
