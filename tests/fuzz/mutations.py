"""Contents made of good ones: changed bytes, and JSON with values that readers do not expect."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

from tests.sdjob.dataset.test_fuzz import damaged

_DEEP = 20_000
_VALUES = (
    None,
    True,
    -1,
    0,
    0.5,
    1e999,
    float("nan"),
    10**30,
    -(2**63),
    "",
    "\0",
    "\ud800",
    "../../x",
    "/dev/zero",
    "a" * 5000,
    "\x1b[2J\u202e",
    "${HOME}",
    [],
    {},
    [[]],
    [None],
    [1e999],
    {"": ""},
    {"a": None},
    ["a", 1],
    "nan",
    "1e999",
    "١",
)
_RAW = (
    b"",
    b"\0",
    b"[" * _DEEP,
    b'{"a":' * _DEEP,
    b"- " * _DEEP,
    b"[]" * 100,
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"null",
    b"1" * 5000,
    b"=\n=",
    b"&a [*a]",
    b"!!python/object:os.system x",
    b"\r",
    b'"\\ud800"',
    b"{]",
)


def contents(good: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Contents of a file, of which these are good ones."""
    choices = [st.sampled_from([*good, *_RAW]), damaged(list(good)), st.binary(max_size=200)]
    for content in good:
        choices += 3 * [_rewritten(rewrite, value) for rewrite, value in _parsed(content)]
    return st.one_of(choices)


def _parsed(content: bytes) -> list[tuple[Any, Any]]:
    """JSON in a file, and how the file is made of a value: as it is, on its lines, or as a header of safetensors."""
    length = int.from_bytes(content[:8], "little")
    forms = (
        (content, lambda value: _text(value)),
        (content.partition(b"\n")[0], lambda value: _text(value) + b"\n" + content.partition(b"\n")[2]),
        (content[8 : 8 + length], lambda value: _with_header(_text(value), content[8 + length :])),
    )
    for text, rewrite in forms:
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, (dict, list)):
            return [(rewrite, value)]
    return []


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


def _with_header(text: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + rest


def _rewritten(rewrite: Any, value: Any) -> st.SearchStrategy[bytes]:
    places = list(_places(value))[:300]
    change = st.tuples(st.sampled_from(places), st.sampled_from(_VALUES))
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: rewrite(_changed(value, changes)))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from _places(each, (*path, key))


def _changed(value: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    for path, new in changes:
        value = _set(value, path, new)
    return value


def _set(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    try:
        copy = value.copy()
        copy[key] = _set(copy[key], tuple(rest), new)
    except (AttributeError, KeyError, IndexError, TypeError):  # an earlier change has taken it away
        return value
    return copy
