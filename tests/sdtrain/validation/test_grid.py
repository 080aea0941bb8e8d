"""The grid of validation images."""

import os

import numpy as np
import pytest
from PIL import Image

from sdjob.dataset.images import ImageError
from sdtrain.validation import grid
from sdtrain.validation.grid import image_name
from tests.support.hostile import claiming_png


def test_grid(tmp_path):
    columns = {}
    for column, title in enumerate(("before", "after")):
        folder = columns[title] = tmp_path / title
        folder.mkdir()
        for prompt in (0, 1):
            for number in (0, 1, 2):
                colour = (100 * column, 100 * prompt, 100 * number)
                Image.new("RGB", (80, 80), colour).save(folder / image_name(prompt, number))
    sheet = grid.grid(columns, ("a", "b"), 3)
    assert sheet.size == (2 * 3 * 80 + 8, 16 + 2 * (16 + 80))
    for column in (0, 1):
        for prompt in (0, 1):
            for number in (0, 1, 2):
                left, top = column * (3 * 80 + 8) + number * 80, 16 + prompt * 96 + 16
                assert sheet.getpixel((left + 40, top + 40)) == (100 * column, 100 * prompt, 100 * number)


def test_a_label_ends_with_its_column(tmp_path):
    Image.new("RGB", (128, 128), "red").save(tmp_path / image_name(0, 0))
    long = grid.grid(
        {"before": tmp_path, "after": tmp_path}, ("a red cross on a white ground\nand much more",), 1
    )
    pixels = np.asarray(long.convert("L"))[16:32]
    assert (pixels[:, 128:136] == 255).all()  # between the columns
    assert (pixels[:, :128] == pixels[:, 136:264]).all() and (pixels[:, :128] < 200).any()


def test_columns_of_small_images_have_room_for_the_name_of_a_checkpoint(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / image_name(0, 0))
    names = ("checkpoint-000010", "checkpoint-000020")
    sheet = grid.grid(dict.fromkeys(names, tmp_path), ("a",), 1)
    assert sheet.size == (128 + 8 + 128, 16 + 16 + 128)
    titles = np.asarray(sheet.convert("L"))[:16]
    assert (titles[:, :128] != titles[:, 136:]).any(), "cut before the step"


def test_images_that_are_not_square_and_sheets_that_would_be_too_large(tmp_path, monkeypatch):
    for number in (0, 1):
        Image.new("RGB", (80, 40), "red").save(tmp_path / image_name(0, number))
    assert grid.grid({"a": tmp_path}, ("a",), 2).size == (160, 16 + 16 + 40)
    monkeypatch.setattr(grid, "_MOST_PIXELS", 2 * 80 * 40 // 4)
    assert grid.grid({"a": tmp_path}, ("a",), 2).size == (80, 16 + 16 + 20)


@pytest.mark.parametrize("what", ["missing", "pipe", "folder", "text", "bomb"])
def test_samples_that_others_have_replaced_are_refused_and_not_waited_for(tmp_path, what):
    path = tmp_path / image_name(0, 0)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes(b"no image" if what == "text" else claiming_png(60_000, 60_000))
    with pytest.raises(ImageError):
        grid.grid({"before": tmp_path}, ("a",), 1)
