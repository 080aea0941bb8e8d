"""Prompts that fit into images and pages."""

import pytest
from PIL import Image, ImageDraw

from sdtrain.reporting.labels import label, visible


def test_labels_are_whole_or_end_in_dots_or_are_numbers():
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    assert label(pen, "a cross", "prompt 3", 60) == "a cross"
    assert label(pen, "圆", "prompt 3", 60) == "prompt 3"
    cut = label(pen, "a red cross on a white ground", "prompt 3", 60)
    assert cut.startswith("a red") and cut.endswith("...") and 40 < pen.textlength(cut) <= 60
    assert label(pen, "a" * 1_000_000, "prompt 3", 60) == label(pen, "a" * 60, "prompt 3", 60)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", "two lines"),
        ("\x1b[31mred\0", r"\x1b[31mred\x00"),
        ("a\ttab, é and 圆", r"a\ttab, é and 圆"),
        ("\u202eright to left, \ud800", r"\u202eright to left, \ud800"),
    ],
)
def test_control_characters_are_escapes(text, shown):
    assert visible(text) == shown
