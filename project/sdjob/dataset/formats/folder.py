"""A folder of images, each with its caption in a text file of its name where captions are needed (kohya's layout)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdjob.dataset.formats import DatasetInfo, Files, Format, Wanted, file_sizes, size_line
from sdjob.dataset.images import is_image_name
from sdjob.dataset.text_files import read_caption
from sdjob.files import Listing, few, shown, suffix_of
from sdjob.problems import JobError, bad_input
from sdjob.reading import in_threads

CAPTION_SUFFIXES = (".txt", ".caption")  # in any case; the first that an image has is read
_COLUMN = ".txt"  # the name of the caption column
_OTHER_CAPTIONS = (
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
)  # files that often hold captions, not read under any name
_REMEDY = (
    'add a metadata.jsonl with a line {"file_name": "a.jpg", "text": "its caption"} for each image, '
    "or a .txt next to each image; to train a subject without captions use recipe=dreambooth"
)


def _detect(listing: Listing, captions: bool) -> bool:
    return any(is_image_name(name) for name in listing.files)


def _lacks_captions(listing: Listing) -> bool:
    texts = _caption_files(listing)
    return not any(is_image_name(name) and _caption_of(name, texts) for name in listing.files)


def _inspect(listing: Listing, wanted: Wanted) -> DatasetInfo:
    names = tuple(name for name in listing.files if is_image_name(name))
    files = Files(listing.path, names)
    if not wanted.caption:
        return DatasetInfo(listing.path, FOLDER, files, len(files), ("image",), "image", None)
    texts = _caption_files(listing)
    captions = [_caption_of(name, texts) for name in names]
    if bare := [name for name, caption in zip(names, captions, strict=True) if not caption]:
        found = f"{len(bare):,} of {len(names):,} images have no caption: {few(bare)}"
        if others := [name for name in listing.files if suffix_of(name) in _OTHER_CAPTIONS]:
            found += f"; {few(others)} {'is' if len(others) == 1 else 'are'} not read"
        raise JobError(bad_input(shown(listing.path), found, _REMEDY))
    companions = Files(listing.path, tuple(filter(None, captions)))
    return DatasetInfo(
        listing.path, FOLDER, files, len(files), ("image", _COLUMN), "image", _COLUMN, companions=companions
    )


def _caption_files(listing: Listing) -> dict[tuple[str, str], str]:
    """(name of the image with or without its suffix, suffix of the caption) → name of the caption's file."""
    texts: dict[tuple[str, str], str] = {}
    for name in listing.files:
        suffix = suffix_of(name)
        if suffix in CAPTION_SUFFIXES and (name.endswith(suffix) or (_key(name), suffix) not in texts):
            texts[_key(name), suffix] = name
    return texts


def _caption_of(image: str, texts: dict[tuple[str, str], str]) -> str | None:
    """The caption's file of an image: a.txt of a.jpg, a.caption, a.jpg.txt or a.jpg.caption."""
    for key in (_key(image), _composed(image)):
        for suffix in CAPTION_SUFFIXES:
            if name := texts.get((key, suffix)):
                return name
    return None


def _key(name: str) -> str:
    return _composed(name[: len(name) - len(suffix_of(name))])


def _composed(name: str) -> str:
    """macOS writes accents as characters of their own; archives and other systems compose them."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _captions(info: DatasetInfo) -> Iterator[str]:
    return map(read_caption, info.companions)


def _identity(info: DatasetInfo) -> Iterable[bytes]:
    """Names and sizes of the images, each followed by the size of its caption."""
    if info.caption_column is None:
        return file_sizes(info)

    def sizes(index: int) -> bytes:
        image, text = info.files[index], info.companions[index]
        return image.name.encode(errors="surrogateescape") + size_line(image) + size_line(text)[1:]

    return in_threads(sizes, range(len(info.files)))


@dataclass(frozen=True)
class _FolderRows:
    info: DatasetInfo

    def image(self, index: int) -> Path:
        return self.info.files[index]

    def caption(self, index: int) -> str | None:
        return read_caption(self.info.companions[index]) if self.info.caption_column else None


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> _FolderRows:
    return _FolderRows(info)


FOLDER = Format(
    "folder",
    "a folder of images (jpg, png, webp, avif, tiff, …)",
    _detect,
    _inspect,
    _captions,
    _open,
    identity=_identity,
    lacks_captions=_lacks_captions,
)
