"""A folder of images, each with its caption in a .txt of its name where captions are needed (kohya's layout)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdjob.dataset.formats import Columns, DatasetInfo, Files, Format, file_sizes
from sdjob.dataset.images import is_image_name
from sdjob.files import Listing, few, shown, suffix_of
from sdjob.problems import JobError, bad_input
from sdjob.threads import in_threads

_SUFFIX = ".txt"  # also the name of the caption column
_REMEDY = (
    'add a metadata.jsonl with a line {"file_name": "a.jpg", "text": "its caption"} for each image, '
    "or a .txt next to each image; to train a subject without captions use recipe=dreambooth"
)


def _detect(listing: Listing, captions: bool) -> bool:
    return any(is_image_name(name) for name in listing.files)


def _lacks_captions(listing: Listing) -> bool:
    """Whether no image has a caption."""
    texts = _captioned(listing)
    return not any(is_image_name(name) and _stem(name) in texts for name in listing.files)


def _inspect(listing: Listing, columns: Columns) -> DatasetInfo:
    names = tuple(name for name in listing.files if is_image_name(name))
    caption = _SUFFIX if columns.caption else None
    if caption:
        texts = _captioned(listing)
        if bare := [name for name in names if _stem(name) not in texts]:
            found = f"{len(bare):,} of {len(names):,} images have no caption: {few(bare)}"
            raise JobError(bad_input(shown(listing.path), found, _REMEDY))
    files = Files(listing.path, names)
    shown_columns = ("image", caption) if caption else ("image",)
    return DatasetInfo(listing.path, FOLDER, files, len(files), shown_columns, "image", caption)


def _captioned(listing: Listing) -> set[str]:
    """The names of the captions' files, without suffix."""
    return {_stem(name) for name in listing.files if name.endswith(_SUFFIX)}


def _stem(name: str) -> str:
    return name[: len(name) - len(suffix_of(name))]


def _captions(info: DatasetInfo) -> Iterator[str]:
    return (_caption(image) for image in info.files) if info.caption_column else iter(())


def _caption(image: Path) -> str:
    """The caption in the .txt next to an image. Raises JobError."""
    path = image.with_suffix(_SUFFIX)
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        found = f"the caption cannot be read ({error})"
        raise JobError(bad_input(shown(path), found, "write it again, as UTF-8 text")) from error


def _identity(info: DatasetInfo) -> Iterable[bytes]:
    """Names and sizes of the images, each followed by the size of its caption."""
    if info.caption_column is None:
        return file_sizes(info)

    def sizes(path: Path) -> bytes:
        text = path.with_suffix(_SUFFIX)
        return f"{path.name}/{path.stat().st_size}\n{text.stat().st_size}\n".encode()

    return in_threads(sizes, info.files)


@dataclass(frozen=True)
class _FolderRows:
    info: DatasetInfo

    def image(self, index: int) -> Path:
        return self.info.files[index]

    def caption(self, index: int) -> str | None:
        return _caption(self.info.files[index]) if self.info.caption_column else None


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> _FolderRows:
    return _FolderRows(info)


FOLDER = Format(
    "folder",
    "a folder of images (jpg, png, webp, bmp, gif, tiff)",
    _detect,
    _inspect,
    _captions,
    _open,
    identity=_identity,
    lacks_captions=_lacks_captions,
)
