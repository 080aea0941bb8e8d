"""A new format is one module and one line in the table: a toy one, from its detection to a training source."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdjob.dataset import detect
from sdjob.dataset.formats import DatasetInfo, Format, Wanted
from sdjob.dataset.images import decode
from sdjob.dataset.verify import Examined, verify_all, verify_sample
from sdjob.files import Listing
from sdjob.output.fingerprint import data_identity
from sdtrain.data.sources import open_source
from tests.support.datasets import PNG, captions, find, write_image

# --- what a new module holds ---------------------------------------------------------------------------


def _pairs(folder: Path) -> list[list[str]]:
    return [line.split("\t") for line in (folder / "pairs.tsv").read_text().splitlines()]


def _detect(listing: Listing, captions: bool) -> bool:
    return "pairs.tsv" in listing.files


def _inspect(listing: Listing, wanted: Wanted) -> DatasetInfo:
    files = tuple(listing.path / name for name, _ in _pairs(listing.path))
    return DatasetInfo(listing.path, PAIRS, files, len(files), ("0", "1"), "0", wanted.caption and "1")


def _captions(info: DatasetInfo) -> Iterator[str]:
    return (caption for _, caption in _pairs(info.path))


@dataclass(frozen=True)
class _Rows:
    info: DatasetInfo

    def image(self, index: int) -> Path:
        return self.info.files[index]

    def caption(self, index: int) -> str | None:
        return _pairs(self.info.path)[index][1] if self.info.caption_column else None


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> _Rows:
    return _Rows(info)


PAIRS = Format("pairs", "images with pairs.tsv", _detect, _inspect, _captions, _open)

# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "FORMATS", (PAIRS, *detect.FORMATS))
    for name in ("b.png", "a.png"):
        write_image(tmp_path / "data" / "raw" / name)
    (tmp_path / "data" / "pairs.tsv").write_text("raw/b.png\tfirst\nraw/a.png\tsecond\n")
    return tmp_path / "data"


def test_a_new_format_is_found_checked_and_read(pairs, tmp_path):
    info = find(tmp_path)
    assert (info.path, info.format.name, info.num_examples) == (pairs, "pairs", 2)
    assert captions(tmp_path) == ["first", "second"]
    assert verify_sample(info, 16).bad == verify_all(info, float("inf")).bad == []
    source = open_source(info, None)
    assert [source[index].caption() for index in range(len(source))] == ["first", "second"]
    assert [source[index].name() for index in range(2)] == [f"{pairs}/raw/b.png", f"{pairs}/raw/a.png"]
    assert decode(source[0].encoded()).size == decode(PNG).size


def test_bad_images_and_changes_of_a_new_format_are_noticed(pairs):
    before = data_identity(find(pairs))
    write_image(pairs / "raw" / "a.png", b"not an image")
    assert data_identity(find(pairs)) != before
    (problem,) = verify_sample(find(pairs), 16).bad
    assert problem.subject == f"{pairs}/raw/a.png"
    assert verify_all(find(pairs), float("inf")) == Examined(2, {1: problem}, {})
