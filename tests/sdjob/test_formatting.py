"""Numbers with the word that they count."""

import pytest

from sdjob.formatting import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("picture",), "1 picture"),
        (0, ("picture",), "0 pictures"),
        (12_000, ("picture",), "12,000 pictures"),
        (1, ("process", "processes"), "1 process"),
        (2, ("process", "processes"), "2 processes"),
    ],
)
def test_one_and_many(number, words, text):
    assert counted(number, *words) == text
