"""A dataset is found below a mount, or refused with what is there."""

import os
from pathlib import Path

from sdjob.dataset.detect import FORMATS
from sdjob.dataset.verify import verify_sample
from sdjob.problems import JobError
from tests.sdjob.unprivileged import problems_as_user
from tests.support import datasets
from tests.support.datasets import find, jsonl, only, parquet, table, write_image


def test_nothing_usable_says_what_was_found(tmp_path):
    for name in ("a.txt", "b.txt", "c.zip"):
        (tmp_path / name).write_text("x")
    problem = only(tmp_path, captions=False)
    assert "contains no images" in problem.found and "2 .txt, 1 .zip" in problem.found
    assert problem.remedy.startswith("Provide a folder of images (jpg")
    assert all(each.description in problem.remedy for each in FORMATS)
    (tmp_path / "empty").mkdir()
    assert "is empty" in only(tmp_path, "empty").found
    assert "does not exist" in only(tmp_path / "no").found


def test_it_is_found_below_the_mount(tmp_path):
    data = tmp_path / "Teyvat" / "data"
    parquet(data / "train-00000-of-00001.parquet", table(3))
    (tmp_path / "Teyvat" / "README.md").write_text("x")
    (data / "._train-00000-of-00001.parquet").write_bytes(b"what macOS leaves beside a copied file")
    for stray in (".cache", "lost+found", "__MACOSX"):
        parquet(tmp_path / stray / "train.parquet", table(1))
    for root, name in ((tmp_path, None), (tmp_path, "Teyvat"), (tmp_path, str(data)), (data, None)):
        assert find(root, name).path == data


def test_several_need_a_name(tmp_path):
    write_image(tmp_path / "cats" / "a.png")
    write_image(tmp_path / "big dogs" / "a.png")
    problem = only(tmp_path, captions=False)
    assert "2 datasets: big dogs, cats" in problem.found and "dataset_name=" in problem.remedy
    assert find(tmp_path, "big dogs", captions=False).num_examples == 1
    wrong = only(tmp_path, "birds", captions=False)
    assert "does not exist" in wrong.found and "big dogs, cats" in wrong.found


def test_the_only_captioned_one_is_chosen(tmp_path):
    write_image(tmp_path / "bare" / "a.png")
    write_image(tmp_path / "preview.png")
    jsonl(tmp_path / "captioned", {"file_name": "a.png", "text": "x"})
    write_image(tmp_path / "captioned" / "a.png")
    assert find(tmp_path).path == tmp_path / "captioned"
    assert find(tmp_path, captions=False).path == tmp_path


def test_train_is_chosen_among_splits(tmp_path):
    for split in ("train", "test", "validation"):
        write_image(tmp_path / "data" / split / f"{split}.png")
    assert find(tmp_path, captions=False).path == tmp_path / "data" / "train"


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_image(folder / os.fsdecode(b"\xff.png"), b"")
    write_image(folder / "good.png")
    (problem,) = verify_sample(find(tmp_path, captions=False), 4).bad
    assert r"caf\xe9/\xff.png" in str(problem)
    for found in (problem, only(tmp_path), only(folder, "no such")):
        str(found).encode("utf-8")


def test_impossible_names_are_problems(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("x" * 300, "nul\0l", "a.png/b"):
        assert only(tmp_path, name, captions=False).found
    assert "is a file" in only(tmp_path, "a.png", captions=False).found


def test_links_are_followed_and_loops_are_not_fatal(tmp_path):
    write_image(tmp_path / "elsewhere" / "a.png")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (folder / "loop").symlink_to(folder / "loop")
    assert find(folder, captions=False).num_examples == 1
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    assert find(tmp_path, "linked", captions=False).num_examples == 1


def test_unreadable_places_are_problems(tmp_path):
    write_image(tmp_path / "secret" / "a.png")
    secret = tmp_path / "secret"
    secret.chmod(0o000)
    try:
        found = problems_as_user(lambda: find(secret, captions=False), secret)
        assert list(found) == [str(secret)] and "permission denied" in found[str(secret)]
        below = problems_as_user(lambda: find(tmp_path, captions=False), secret)
        assert "permission denied" in below[str(secret)] and str(tmp_path) in below
    finally:
        secret.chmod(0o755)
    jsonl(secret, {"file_name": "a.png", "text": "x"}).chmod(0o000)
    (secret / "a.png").chmod(0o000)
    assert "permission denied" in str(problems_as_user(lambda: find(secret), secret))

    def sampled():
        raise JobError(verify_sample(find(secret, captions=False), 4).bad)

    assert "permission denied" in problems_as_user(sampled, secret)[str(secret / "a.png")]


def test_nothing_heavy_is_imported_to_recognise_a_folder(tmp_path):
    import subprocess
    import sys

    import sdjob

    write_image(tmp_path / "a.png")
    code = f"""
import sys
sys.path.insert(0, {str(Path(sdjob.__file__).parents[1])!r})
from pathlib import Path
from sdjob.dataset.detect import find_dataset
import sdjob.model.pipeline
find_dataset(Path({str(tmp_path)!r}), None, captions=False, image_column="image", caption_column="text")
print([name for name in ("PIL", "pyarrow", "numpy", "torch", "diffusers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_images_of_a_phone_alone(tmp_path):
    """A folder without anything else to train on: the command is the remedy."""
    for number in range(12):
        write_image(tmp_path / f"IMG_{number:02}.HEIC")
    first, _ = datasets.problems(tmp_path, captions=False)
    assert (
        first.found
        == "12 images of a format that is not read: IMG_00.HEIC, IMG_01.HEIC, IMG_02.HEIC and 9 more"
    )
    assert first.remedy == "Run `pip install pillow-heif`."
