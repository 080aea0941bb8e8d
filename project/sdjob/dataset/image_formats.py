"""Which files are images: what the installed Pillow and its plugins decode, and what another package is needed for."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

# What Pillow opens and is not trained on: vector graphics, measurements, videos, icons and brushes, layered
# documents, and formats that Pillow only recognizes.
_OTHER = "BUFR CUR EPS FITS FLI GBR GRIB HDF5 ICNS ICO IM IPTC MPEG PDF PSD WMF XBM XPM"
_BY_JPEG = "MPO"  # files of several JPEGs, as phones write them: opened by the reader of JPEG
_COMMON = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})  # known without Pillow
_HEIC, _JXL, _AVIF = "pillow-heif", "pillow-jxl-plugin", "'pillow>=11.3'"
_PACKAGES = {
    **dict.fromkeys(("heic", "heif", "hif", "heics", "heifs"), _HEIC),
    "jxl": _JXL,
    **dict.fromkeys(("avif", "avifs"), _AVIF),
}
# Layered documents, vector graphics, raw files of cameras, and images of high dynamic range.
_TO_EXPORT = (
    "psd psb xcf kra svg eps raw dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr exr hdr"
)
_CONTENTS = {  # bytes 4 to 12 of a file → its suffix
    **dict.fromkeys((b"ftypheic", b"ftypheix", b"ftypheim", b"ftypmif1", b"ftyphevc", b"ftypmsf1"), "heic"),
    b"JXL \r\n\x87\n": "jxl",
    **dict.fromkeys((b"ftypavif", b"ftypavis"), "avif"),
}


def is_read(suffix: str) -> bool:
    """Whether files of this suffix (in lower case, without dot) are read as images."""
    return suffix in _COMMON or suffix in _suffixes()


@lru_cache(maxsize=1)
def _suffixes() -> frozenset[str]:
    """The suffixes of what Pillow and its plugins decode."""
    try:
        from PIL import Image
    except ImportError:  # named among the missing packages
        return _COMMON
    readable = {*formats(), _BY_JPEG}
    return frozenset(
        suffix[1:].lower() for suffix, name in Image.registered_extensions().items() if name in readable
    )


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """What Pillow may take a file for, whatever its suffix: of the others EPS runs Ghostscript, and FITS unfolds."""
    from PIL import Image

    load_plugins()
    left_out = {*_OTHER.split(), *_without_decoder()}
    return tuple(name for name in Image.ID if name not in left_out)


@lru_cache(maxsize=1)
def load_plugins() -> None:
    """Let Pillow know all of its own formats and those of the installed plugins. Each process needs it."""
    from PIL import Image

    Image.preinit()  # the common formats are tried first
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  # registers itself


def _without_decoder() -> set[str]:
    """Formats that this build of Pillow knows and cannot decode."""
    from PIL import features

    needs = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000", "JPEG": "jpg", "PNG": "zlib"}
    return {name for name, feature in needs.items() if not features.check(feature)}


def remedy_for(suffix: str) -> str | None:
    """How to use a file that holds an image by its suffix (in lower case, without dot) and is not read; None: it does
    not hold an image, or is read."""
    if is_read(suffix):
        return None
    if package := _PACKAGES.get(suffix):
        return f"run `pip install {package}`"
    return "export as PNG or JPEG" if suffix in _TO_EXPORT.split() else None


def unread(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of images that are not read, by what helps."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if remedy := remedy_for(name.rpartition(".")[2].lower()):
            found[remedy].append(name)
    return found


def remedy_by_content(start: bytes) -> str | None:
    """What lets Pillow decode a file that starts with these bytes; None: nothing known, or it does already."""
    suffix = "jxl" if start.startswith(b"\xff\x0a") else _CONTENTS.get(start[4:12])
    return remedy_for(suffix) if suffix else None
