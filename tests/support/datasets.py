"""Small datasets of every format, and helpers to detect them."""

import io
import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdjob.dataset.detect import find_dataset
from sdjob.problems import JobError


def find(root, name=None, captions=True, image_column="image", caption_column="text"):
    return find_dataset(
        Path(root), name, captions=captions, image_column=image_column, caption_column=caption_column
    )


def problems(root, name=None, **options):
    with pytest.raises(JobError) as caught:
        find(root, name, **options)
    assert {problem.code for problem in caught.value.problems} == {66}
    return caught.value.problems


def only(root, name=None, **options):
    (problem,) = problems(root, name, **options)
    return problem


def png(color="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def make_parquet(folder: Path) -> Path:
    """A dataset as Teyvat and pokemon-blip-captions have it: data/train-00000-of-00001.parquet, image and text."""
    rows = [
        {"image": {"bytes": png(color), "path": None}, "text": f"a {color} one"}
        for color in ("red", "green", "blue", "white")
    ]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    return folder


PNG = png()


def write_image(path: Path, content=PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def jsonl(folder: Path, *rows) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(count, **columns) -> pa.Table:
    data = {
        "image": [{"bytes": PNG, "path": f"{number}.png"} for number in range(count)],
        "text": [f"caption {number}" for number in range(count)],
    }
    return pa.table({**data, **columns})


def parquet(path: Path, content: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def captions(root, limit=100):
    info = find(root)
    return list(islice(info.format.captions(info), limit))
