"""Images of any kind that Pillow reads → RGB, 8 bits, upright; or one error that says why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sdjob.files import LFS_POINTER, reason_of
from sdjob.problems import Problem, bad_input
from sdjob.threads import in_threads

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})

_PNG_END = 1 << 17  # bytes at the end of a file; EXIF and XMP of cameras take at most half of it each
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ImageError(Exception):
    """An image that cannot be used; `reason` says why, in a few words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    stem, _, suffix = name.rpartition(".")
    return suffix.lower() in SUFFIXES and stem != "" and stem[0] != "."


def image_problem(name: str, error: ImageError) -> Problem:
    """The problem of an image that cannot be used."""
    return bad_input(name, error.reason, "replace this image, or remove it from the dataset")


def undecodable(
    indices: Sequence[int], name: Callable[[int], str], image: Callable[[int], Image]
) -> dict[int, Problem]:
    """The images that cannot be decoded, and why; all are tried in threads (Pillow frees the GIL)."""

    def problem(index: int) -> Problem | None:
        try:
            image(index)
        except ImageError as error:
            return image_problem(name(index), error)
        return None

    found = in_threads(problem, indices, threads=min(8, os.cpu_count() or 1))
    return {index: bad for index, bad in zip(indices, found, strict=True) if bad}


def source_of(value: Any, folder: Path) -> Path | bytes:
    """The encoded image of a stored value: a path, encoded bytes, or a {bytes, path} dictionary. Raises ImageError."""
    if isinstance(value, Path):
        return value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str) and value:
        return folder / value
    raise ImageError("the row does not hold an image")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[ImageFile]:
    """The image, opened by Pillow. Whatever goes wrong with it meanwhile is raised as ImageError."""
    from PIL import Image

    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            yield opened
    except MemoryError:  # says nothing about the image
        raise
    except Exception as error:  # Pillow's plugins raise some ten types for broken files
        raise ImageError(_reason(source, error)) from error


def decode(source: Path | bytes) -> Image:
    """The first frame as an RGB image, upright, transparent parts on white. Raises ImageError."""
    from PIL import ImageOps

    with _opened(source) as image:
        image.load()  # every pixel: a truncated file raises here
        return _to_rgb(ImageOps.exif_transpose(image))


def size_of(source: Path | bytes) -> tuple[int, int]:
    """Width and height as `decode` gives them, from the start and the end of the file. Raises ImageError."""
    with _opened(source) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _TURNED else (width, height)


def _orientation(opened: ImageFile) -> int:
    """The orientation by EXIF or XMP.

    In a PNG these may follow the pixels, and Pillow decodes all of them to get there: only if the file ends with such
    metadata.
    """
    from PIL import ExifTags, Image

    exif = (
        opened.getexif()
        if opened.format != "PNG" or _ends_with_metadata(opened.fp)
        else Image.Image.getexif(opened)
    )
    return int(exif.get(ExifTags.Base.Orientation, 1))


def _ends_with_metadata(png: IO[bytes] | None) -> bool:
    """Whether metadata may follow the pixels. Keeps the position in the file."""
    if png is None:
        return True
    position = png.tell()
    png.seek(0, os.SEEK_END)
    png.seek(max(position, png.tell() - _PNG_END))
    end = png.read()
    png.seek(position)
    return any(mark in end for mark in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))


def _to_rgb(image: Image) -> Image:
    """Any mode → RGB."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_8_bit(image: Image) -> Image:
    """Wide grey values → L. Pillow's own conversion clips them at 255 instead.

    Integers are 16 bit wide, floats run to 1, and either to 255, 65535 or their own maximum where they
    exceed that: files of such modes do not say where their white is.
    """
    values = image.convert("I").convert("F") if image.mode.startswith("I;16") else image.convert("F")
    extrema = values.getextrema()
    largest = float(extrema[1])  # type: ignore[arg-type]  # one band: (low, high)
    whites = (1.0, 255.0, 65535.0, largest) if image.mode == "F" else (65535.0, largest)
    white = next(value for value in whites if not value < largest)
    return values.point(lambda value: value * (255.0 / white) + 0.5).convert("L")


def _reason(source: Path | bytes, error: Exception) -> str:
    """Why an image could not be decoded."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"has more than {limit:,} pixels, which is not decoded (decompression bomb?)"
    if isinstance(error, OSError) and error.strerror:
        return reason_of(error)
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        start = file.read(64)
    if not start:
        return "is empty (0 bytes)"
    if start.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the image itself: run `git lfs pull` where it was cloned"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image (starts with {start[:12]!r})"
    return f"cannot be decoded ({error or type(error).__name__})"
