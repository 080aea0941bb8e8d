"""Signs of life from long work that shows no progress."""

import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdjob.dataset.detect import find_dataset
from sdtrain.data.images import verify
from sdtrain.data.sources import open_source
from sdtrain.runtime import heartbeat
from tests.support.datasets import PNG


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


def test_a_table_that_is_converted_is_alive(beats, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), data / "train.parquet")
    info = find_dataset(data, None, captions=False, image_column="image", caption_column="text")
    assert beats(0) is False
    assert beats(20, lambda: open_source(info, tmp_path / f"converted-{time.monotonic_ns()}"))


def test_every_image_that_is_looked_at_is_a_sign_of_life(beats):
    seen = []

    class Source:
        def __len__(self):
            return 3

        def name(self, index):
            return str(index)

        def encoded(self, index):
            seen.append(index)
            return PNG

    assert beats(0, lambda: None) is False
    assert beats(20, lambda: verify(Source(), "all", 0, 1))
    assert sorted(seen[:3]) == [0, 1, 2]
