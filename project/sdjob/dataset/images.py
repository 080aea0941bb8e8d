"""Images of any kind that Pillow reads → sRGB, 8 bits, upright; or one error that says why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from sdjob import reading
from sdjob.dataset import color_profiles, decoded_size, image_formats
from sdjob.files import LFS_POINTER, dead_link, reason_of, shown
from sdjob.problems import Problem, bad_input

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_PNG_END = 1 << 17  # bytes at the end of a file; EXIF and XMP of cameras take at most half of it each
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ImageError(Exception):
    """An image that cannot be used; `reason` says why, in a few words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Remark(NamedTuple):
    """What a user should know about images that can be used."""

    text: str  # "are …", of several images
    is_warning: bool


_FRAMES = Remark("hold several frames or pages, of which the first is used", True)
_BAD_PROFILE = Remark("have a color profile that cannot be used, and are read as sRGB", True)


def is_image_name(name: str) -> bool:
    stem, _, suffix = name.rpartition(".")
    return stem != "" and stem[0] != "." and image_formats.is_read(suffix.lower())


def image_problem(name: str, error: ImageError) -> Problem:
    return bad_input(name, error.reason, "replace this image, or remove it from the dataset")


def source_of(value: Any, folder: Path) -> Path | bytes:
    """The encoded image of a stored value: a path, encoded bytes, or a {bytes, path} dictionary. Raises ImageError."""
    if isinstance(value, Path):
        return value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str) and value:
        path = Path(os.path.normpath(folder / value))
        if not path.is_relative_to(folder):
            raise ImageError(f"names a file outside of the dataset: {shown(value)}")
        return path
    raise ImageError("the row does not hold an image")


def stored(source: Path | bytes) -> IO[bytes]:
    """The encoded image, to be read; of a path only a regular file, not waited for. Raises OSError."""
    return BytesIO(source) if isinstance(source, bytes) else reading.opened(source)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[ImageFile]:
    """The image, opened by Pillow. Whatever goes wrong with it meanwhile is raised as ImageError."""
    from PIL import Image

    formats = image_formats.formats()
    try:
        with (
            stored(source) as file,
            decoded_size.read_whole(_size(file)),
            Image.open(file, formats=formats) as opened,
        ):
            yield opened
    except MemoryError:  # says nothing about the image
        raise
    except Exception as error:  # Pillow's plugins raise some ten types for broken files
        raise ImageError(_reason(source, error)) from error


def _size(file: IO[bytes]) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def decode(source: Path | bytes) -> Image:
    """The first frame as an sRGB image, upright, transparent parts on white. Raises ImageError.

    Without a color profile, or with one that cannot be used, an image counts as sRGB.
    """
    with _opened(source) as image:
        return _decoded(image)


def remarks_on(source: Path | bytes) -> list[Remark]:
    """What a user should know about an image. Raises ImageError where it cannot be decoded."""
    remarks = []
    with _opened(source) as image:
        # The other images of an MPO are for depth and brightness.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            remarks.append(_FRAMES)
        decoded = _decoded(image)
        if profile := image.info.get("icc_profile"):
            remarks += _remarks_on_colors(profile, image.mode)
        decoded.close()
    return remarks


def _decoded(opened: ImageFile) -> Image:
    from PIL import ImageOps

    turned = _orientation(opened) != 1
    with decoded_size.reserved(opened, turned=turned):
        opened.load()  # every pixel: a truncated file raises here
        if not _is_turned_by_reader(opened):
            ImageOps.exif_transpose(opened, in_place=True)
        return _to_rgb(opened)


def size_of(source: Path | bytes) -> tuple[int, int]:
    """Width and height as `decode` gives them, from the start and the end of the file. Raises ImageError."""
    with _opened(source) as image:
        width, height = _stored_size(image)
        return (height, width) if _orientation(image) in _TURNED else (width, height)


def _stored_size(opened: ImageFile) -> tuple[int, int]:
    """Width and height before the orientation is applied. For a TIFF, Pillow has swapped them by then."""
    if opened.format == "TIFF":
        tags = opened.tag_v2  # type: ignore[attr-defined]  # of a TiffImageFile
        return int(tags[256]), int(tags[257])
    return opened.size


def _is_turned_by_reader(opened: ImageFile) -> bool:
    """Whether the pixels of this file are upright whatever its EXIF says: a JPEG XL that was not made from a JPEG.

    Pillow turns a TIFF as it loads the pixels, and pillow-heif a HEIC; both take the orientation out of the EXIF.
    """
    return opened.format == "JXL" and not getattr(opened, "jpeg", False)


def _orientation(opened: ImageFile) -> int:
    """The orientation by EXIF or XMP.

    In a PNG these may follow the pixels, and Pillow decodes all of them to get there: only if the file ends with such
    metadata.
    """
    from PIL import ExifTags, Image

    if _is_turned_by_reader(opened):
        return 1
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
    """Any mode and color profile → RGB."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    if image.mode == "LAB":
        return color_profiles.lab_to_srgb(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    if not image.has_transparency_data:
        return _in_srgb(image, profile)
    rgba = image.convert("RGBA")
    if profile:
        alpha = rgba.getchannel("A")
        rgba = _in_srgb(image if image.mode.startswith("L") else rgba, profile)
        rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _in_srgb(image: Image, profile: bytes | None) -> Image:
    """The colors of an image, without transparency, as RGB."""
    if profile:
        with suppress(color_profiles.ProfileError):  # a remark says so
            mode = _color_mode(image.mode)
            return color_profiles.to_srgb(image if image.mode == mode else image.convert(mode), profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _color_mode(mode: str) -> str:
    """L, CMYK or RGB: the channels that a color profile is about."""
    return "L" if mode[0] in "L1IF" else mode if mode == "CMYK" else "RGB"


def _remarks_on_colors(profile: bytes, mode: str) -> list[Remark]:
    if mode == "LAB":
        return []
    try:
        if color_profiles.is_srgb(profile, _color_mode(mode)):
            return []
        return [Remark(f"are converted to sRGB from {color_profiles.name_of(profile)}", False)]
    except color_profiles.ProfileError:
        return [_BAD_PROFILE]


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
    if isinstance(error, decoded_size.TooLarge):
        return str(error)
    if isinstance(error, FileNotFoundError) and isinstance(source, Path) and source.is_symlink():
        return dead_link(source).found
    if isinstance(error, OSError) and error.strerror:
        return reason_of(error)
    try:
        with stored(source) as file:
            start = file.read(64)
    except OSError as gone:
        return reason_of(gone)
    if not start:
        return "is empty (0 bytes)"
    if start.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the image itself: run `git lfs pull` where it was cloned"
    if remedy := image_formats.remedy_by_content(start):
        return f"is of a format that is read with another package: {remedy}"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image (starts with {start[:12]!r})"
    return f"cannot be decoded ({error or type(error).__name__})"
