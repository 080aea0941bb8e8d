"""Types of columns: which hold texts or images, what shards with different types become, and what is not meant."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sdjob.dataset.text_files import LONGEST_CAPTION

if TYPE_CHECKING:
    import pyarrow as pa

_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def kind_of(column_type: pa.DataType) -> str:
    """ "text", "bytes", "struct" ({bytes, path}), "texts" (a list), or "" for anything else."""
    import pyarrow.types as types

    if types.is_dictionary(column_type):
        return kind_of(column_type.value_type)
    if types.is_struct(column_type):
        return "struct" if _parts(column_type) else ""
    if (
        types.is_list(column_type)
        or types.is_large_list(column_type)
        or types.is_fixed_size_list(column_type)
    ):
        return "texts" if kind_of(column_type.value_type) == "text" else ""
    if (
        types.is_string(column_type)
        or types.is_large_string(column_type)
        or types.is_string_view(column_type)
    ):
        return "text"
    is_bytes = types.is_binary(column_type) or types.is_large_binary(column_type)
    return "bytes" if is_bytes or types.is_binary_view(column_type) else ""


def plain(column_type: pa.DataType) -> pa.DataType:
    """The type that a column of texts or images is read as: without dictionaries, views and other fields."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(column_type):
        return plain(column_type.value_type)
    if types.is_struct(column_type):
        return pa.struct([(name, plain(column_type.field(name).type)) for name in _parts(column_type)])
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return views.get(column_type, column_type)


def as_type(column: pa.Array, column_type: pa.DataType) -> pa.Array:
    """The same values in another type of the same kind; texts that are far too long are cut."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        values = as_type(column.dictionary, column_type)
        return pa.DictionaryArray.from_arrays(column.indices, values).dictionary_decode()
    if kind_of(column.type) == "text":
        column = _cut(column)
    return column if column.type == column_type else pa.array(column.to_pylist(), column_type)


def _cut(texts: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    return texts if longest <= LONGEST_CAPTION else pc.utf8_slice_codeunits(texts, 0, LONGEST_CAPTION)


def _parts(struct: pa.DataType) -> list[str]:
    names = {struct.field(number).name for number in range(struct.num_fields)}
    return [name for name in ("bytes", "path") if name in names]


def not_an_image(value: Any) -> str:
    """What a stored value is instead of an image or its path: "URLs", "base64 text", or "" where it may be one."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    text = value[:400].decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return ""
    if _URL.match(text):
        return "URLs"
    start = re.sub(r"\s", "", text[:40])[:16]
    try:
        is_image = base64.b64decode(start, validate=True).startswith(_IMAGE_STARTS)
    except ValueError:
        is_image = False
    return "base64 text" if text.startswith("data:image/") or is_image else ""


def differing(types: list[pa.DataType]) -> Iterator[int]:
    """Positions of the types that are not of the kind of the first."""
    return (number for number, each in enumerate(types) if kind_of(each) != kind_of(types[0]))
