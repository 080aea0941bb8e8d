"""Text that people wrote: UTF-8, or UTF-16 with its mark; anything else is refused with what it probably is."""

from __future__ import annotations

import codecs
import errno
import io
import itertools
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from sdjob import reading
from sdjob.files import shown, unreadable
from sdjob.problems import JobError, bad_input

_MARKS = ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
LONGEST_CAPTION = 10_000  # characters; what follows is not read, far beyond what a tokenizer keeps
_START = 1 << 16  # bytes that show what is no text, before all of it is read
_MOST = 1 << 20  # bytes of a file with one caption
_MOST_LINES = 20_000_000
# GBK, Big5 and others use the same bytes: GB 18030 reads most of them as some Chinese text.
_GUESS = "gb18030"


def read_text(path: Path) -> str:
    """The text of a file, with line ends as they are. Raises JobError."""
    try:
        with reading.opened(path) as file:
            _check_start(path, file.read(_START))
        return decoded(path, reading.content(path, reading.TEXT))
    except OSError as error:
        raise JobError(unreadable(path, error)) from error


def lines(path: Path, longest: int) -> Iterator[str]:
    """The lines of a file with their ends; of one with more than `longest` characters, the first of them and one more.

    Raises JobError.
    """
    try:
        with reading.opened(path) as file:
            if os.fstat(file.fileno()).st_size > reading.TEXT:
                raise OSError(errno.EFBIG, f"larger than {reading.TEXT >> 20} MiB", str(path))
            start = file.read(_START)
            _check_start(path, start)
            file.seek(0)
            with io.TextIOWrapper(file, _encoding(start), newline="") as text:
                yield from _lines(text, longest)
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except UnicodeError:
        decoded(path, reading.content(path, reading.TEXT))  # says where
        raise


def _lines(text: io.TextIOWrapper, longest: int) -> Iterator[str]:
    """Raises UnicodeError, also of zero bytes."""
    for number in itertools.count():
        if not (line := text.readline(longest + 1)):
            return
        if number == _MOST_LINES:
            raise OSError(errno.EFBIG, f"more than {_MOST_LINES:,} lines")
        if "\0" in line:
            raise UnicodeError
        yield line
        while len(line) > longest and not line.endswith(("\n", "\r")):
            line = text.readline(longest + 1) or "\n"


def read_caption(path: Path) -> str:
    """The caption that is the text of a file. Raises JobError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    if size > _MOST:
        found = f"has {size:,} bytes, which is not one caption"
        raise JobError(bad_input(shown(path), found, "keep the caption of its image alone in this file"))
    return read_text(path).strip()


def decoded(path: Path, content: bytes) -> str:
    """The text of these bytes of a file. Raises JobError."""
    try:
        text = content.decode(_encoding(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found, meant = f"line {line}{_reading(content, error)}", "GBK"
    else:
        if "\0" not in text:
            return text
    if b"\0" in content:
        found = "it holds zero bytes, as UTF-16 without its mark does"
        meant = "UTF-16BE" if content.find(b"\0") % 2 == 0 else "UTF-16LE"
    problem = bad_input(shown(path), f"cannot be read as UTF-8 text ({found})", _remedy(path, meant))
    raise JobError(problem)


def _encoding(start: bytes) -> str:
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8-sig")


def _check_start(path: Path, start: bytes) -> None:
    """Refuse what is no text before all of it is read. Raises JobError."""
    if b"\0" in start and not start.startswith(tuple(mark for mark, _ in _MARKS)):
        decoded(path, start)


def _remedy(path: Path, encoding: str) -> str:
    name = shlex.quote(shown(path.name))
    return f"save it again as UTF-8, for example: iconv -f {encoding} -t UTF-8 {name} > new && mv new {name}"


def _reading(content: bytes, error: UnicodeDecodeError) -> str:
    """What the first line that is not UTF-8 would say in GBK, where that is Chinese text."""
    start = content.rfind(b"\n", 0, error.start) + 1
    line = content[start:].split(b"\n", 1)[0]
    text = line.decode(_GUESS, "ignore").strip()
    if any("\u4e00" <= character <= "\u9fff" for character in text):
        return f"; as GBK it says {text[:40]!r}"
    return f", byte {content[error.start]:#04x}"
