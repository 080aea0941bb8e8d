"""Numbers with the word that they count."""

import pytest

from sdjob.formatting import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("image",), "1 image"),
        (0, ("image",), "0 images"),
        (12_000, ("image",), "12,000 images"),
        (1, ("process", "processes"), "1 process"),
        (2, ("process", "processes"), "2 processes"),
    ],
)
def test_one_and_many(number, words, text):
    assert counted(number, *words) == text
