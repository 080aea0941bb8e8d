"""Signs of life from long work that shows no progress."""

import os
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdjob.dataset.detect import find_dataset
from sdtrain.data.images import verify
from sdtrain.data.sources import open_source
from sdtrain.runtime import heartbeat


@pytest.fixture
def beats(monkeypatch, tmp_path):
    """beats(seconds): whether a sign of life comes within so long from now."""
    file = tmp_path / "alive-0"
    file.touch()
    monkeypatch.setenv("SDJOB_NOTES_DIR", str(tmp_path))
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN_BEATS", 0.02)

    def within(seconds: float, meanwhile=lambda: None) -> bool:
        os.utime(file, (0, 0))
        until = time.monotonic() + seconds
        while file.stat().st_mtime == 0 and time.monotonic() < until:
            meanwhile()
            time.sleep(0.01)
        return file.stat().st_mtime > 0

    return within


def test_work_that_writes_is_alive_and_work_that_stands_still_is_not(beats, tmp_path):
    with (tmp_path / "written").open("wb", buffering=0) as out, heartbeat.while_writing():
        assert beats(20, lambda: out.write(b"x"))
        time.sleep(0.1)
        assert not beats(0.3)


def test_a_table_that_is_converted_is_alive(beats, monkeypatch, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), data / "train.parquet")
    info = find_dataset(data, None, captions=False, image_column="image", caption_column="text")
    found, original = [], datasets.load_dataset

    def slowly(*arguments, **options):
        with (tmp_path / "cache").open("wb", buffering=0) as out:
            found.append(beats(20, lambda: out.write(b"x")))
        return original(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", slowly)
    assert len(open_source(info, tmp_path / "converted")) == 1
    assert found == [True]


def test_every_image_that_is_looked_at_is_a_sign_of_life(beats):
    seen = []

    class Source:
        def __len__(self):
            return 3

        def name(self, index):
            return str(index)

        def image(self, index):
            seen.append(index)
            return Image.new("RGB", (2, 2))

    assert beats(0, lambda: None) is False
    assert beats(20, lambda: verify(Source(), "all", 0, 1))
    assert sorted(seen[:3]) == [0, 1, 2]
