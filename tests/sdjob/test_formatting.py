"""Numbers with the word that they count, and values as they are typed."""

import pytest

from sdjob.formatting import as_typed, counted


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


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "true"), (1e-5, "1e-05"), ("a b", "a b"), (("a", "ü"), '["a", "ü"]'), ([], "[]")],
)
def test_a_value_as_it_is_typed(value, text):
    assert as_typed(value) == text
