"""Numbers with the word that they count, and values as they are typed."""

import json

import pytest

from sdjob.formatting import as_json, as_typed, counted, in_units, visible


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (12_000, "image", "12,000 images"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
    ],
)
def test_one_and_many(number, noun, text):
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "true"), (1e-5, "1e-05"), ("a b", "a b"), (("a", "ü"), '["a", "ü"]'), ([], "[]")],
)
def test_a_value_as_it_is_typed(value, text):
    assert as_typed(value) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_536_000, "1.54 MB"),
        (25_000_000_000, "25 GB"),
        (4_000_000_000_000_000, "4e+03 TB"),
    ],
)
def test_bytes_in_the_largest_unit_that_fits(size, text):
    assert in_units(size) == text


def test_json_for_people_and_programs():
    assert as_json({"a": ["ü"]}) == '{\n  "a": [\n    "ü"\n  ]\n}'


HOSTILE = "\x1b[31mred\x1b[0m\x1b[2J\r\x07\x9b\u202eevil\u200b\u2028 tab\t中文 é 👍\n"


def test_what_is_not_seen_is_escaped():
    shown = r"\x1b[31mred\x1b[0m\x1b[2J\r\x07\u009b\u202eevil\u200b\u2028" + " tab\t中文 é 👍\n"
    assert visible(HOSTILE) == shown
    assert visible(shown) is shown
    assert visible(HOSTILE, colors=True).startswith("\x1b[31mred\x1b[0m\\x1b[2J\\r")


def test_json_has_nothing_hidden_and_says_the_same():
    text = as_json({"a": HOSTILE, "b": "\U000e0041"})
    assert visible(text) == text and "中文 é 👍" in text
    assert json.loads(text) == {"a": HOSTILE, "b": "\U000e0041"}
