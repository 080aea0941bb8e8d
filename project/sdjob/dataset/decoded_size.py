"""Memory that decoding images takes: bounded in a process by what their headers say, before a pixel is decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdjob.formatting import in_units

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MEMORY = 768 << 20  # bytes that all images together take that are being decoded in a process
ENCODED = 256 << 20  # bytes of all their files, which some decoders read as a whole
_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # bytes in Pillow's memory; of all other modes four
_RGB = 4
_WIDE = 5  # of wide grey values, to find their white
# Bytes a pixel of buffers that libwebp, libavif, openjpeg and others hold besides, which decode an image as a whole.
_READER = {"WEBP": 12, "AVIF": 6, "JPEG2000": 16, "SGI": 2, "HEIF": 8, "JXL": 12}


class TooLarge(Exception):
    """An image that takes more memory than there is for all of them."""


class _Free:
    """Bytes that threads take and give back."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._changed = threading.Condition()

    @contextmanager
    def less(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._count >= size)
            self._count -= size
        try:
            yield
        finally:
            with self._changed:
                self._count += size
                self._changed.notify_all()


_FREE = _Free(MEMORY)
_UNREAD = _Free(ENCODED)


@contextmanager
def read_whole(size: int) -> Iterator[None]:
    """Wait until there is memory for a file of so many bytes; `reserved` comes after it. Raises TooLarge."""
    if size > ENCODED:
        raise TooLarge(f"has {in_units(size)}; at most {in_units(ENCODED)} are read: make it smaller")
    with _UNREAD.less(size):
        yield


@contextmanager
def reserved(image: ImageFile, *, turned: bool) -> Iterator[None]:
    """Wait until there is memory for decoding this image and converting it to RGB. Raises TooLarge.

    `turned`: its pixels are copied to be upright.
    """
    size = _needed(image, turned)
    if size > MEMORY:
        width, height = image.size
        text = f"has {width:,} × {height:,} pixels ({image.mode}), which take {in_units(size)} to decode; at most "
        raise TooLarge(f"{text}{in_units(MEMORY)} are used: make it smaller")
    with _FREE.less(size):
        yield


def _needed(image: ImageFile, turned: bool) -> int:
    """Bytes of the pixels, of a copy that is turned, of one in RGB or other colors, and with transparency on white."""
    pixels = image.width * image.height
    is_kept = image.mode == "RGB" and "icc_profile" not in image.info
    copies = 0 if is_kept else 3 if image.has_transparency_data else 1
    wide = _WIDE if image.mode in ("I", "F") or image.mode.startswith("I;16") else 0
    stored = _PIXEL.get(image.mode, _RGB) * (2 if turned else 1) + wide
    return pixels * (stored + _RGB * copies + _READER.get(image.format or "", 0))
