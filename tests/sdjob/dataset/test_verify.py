"""Images that cannot be decoded are named, in a sample or all of them."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from sdjob.children import bounded
from sdjob.dataset import decoded_size, verify
from sdjob.dataset.verify import Examined, examine, spread, verify_all, verify_sample
from tests.support.datasets import PNG, find, parquet, table, write_image


def test_spread_is_even_and_has_both_ends():
    assert spread(5, 16) == [0, 1, 2, 3, 4]
    assert spread(1000, 5) == [0, 250, 500, 749, 999] or spread(1000, 5)[2] in (499, 500)
    assert spread(10, 1) == [0] and spread(0, 4) == []
    for limit in (2, 7, 16):
        rows = spread(17, limit)
        assert len(rows) == limit and rows[0] == 0 and rows[-1] == 16


def test_corrupt_images_are_named(tmp_path):
    for number in range(40):
        write_image(tmp_path / f"{number:02d}.png")
    write_image(tmp_path / "39.png", PNG[:-30])
    write_image(tmp_path / "00.png", b"")
    found = verify_sample(find(tmp_path, captions=False), 16).bad
    assert [Path(problem.subject).name for problem in found] == ["00.png", "39.png"]
    assert {problem.code for problem in found} == {66} and "empty" in found[0].found


@pytest.mark.parametrize("column", ["struct", "bytes", "path"])
def test_corrupt_rows_of_parquet_are_named(tmp_path, column):
    write_image(tmp_path / "images" / "good.png")
    write_image(tmp_path / "images" / "bad.png", b"no image")
    good, bad = {
        "struct": ({"bytes": PNG, "path": None}, {"bytes": b"", "path": None}),
        "bytes": (PNG, PNG[:40]),
        "path": ("images/good.png", "images/bad.png"),
    }[column]
    values = [good] * 300
    values[150] = values[299] = bad
    for number in range(2):
        content = pa.table({"image": values, "text": ["x"] * 300})
        parquet(tmp_path / f"train-0000{number}-of-00002.parquet", content, row_group_size=64)
    found = verify_sample(find(tmp_path), 600).bad
    second = tmp_path / "train-00001-of-00002.parquet"
    assert [problem.subject for problem in found if problem.subject.startswith(str(second))] == [
        f"{second} row 150",
        f"{second} row 299",
    ]
    assert len(found) == 4
    few = verify_sample(find(tmp_path), 2).bad
    assert [problem.subject for problem in few] == [f"{second} row 299"]


def test_large_images_are_decoded_in_a_process_with_bounded_memory(tmp_path, monkeypatch):
    """Pillow makes an object of each of the parts that a file lists, such as 60 million strips of a TIFF."""
    limits = []

    def in_child(read, info, limit, *, subject, memory):
        limits.append(memory)
        return bounded.in_child(read, info, limit, subject=subject, memory=memory)

    monkeypatch.setattr(verify, "in_child", in_child)
    write_image(tmp_path / "a.png")
    info = find(tmp_path, captions=False)
    assert verify_sample(info, 4).count == verify_all(info, time.monotonic() + 60).count == 1
    assert limits == []
    write_image(tmp_path / "a.png", PNG + bytes(1 << 20))
    assert verify_sample(info, 4).count == verify_all(info, time.monotonic() + 60).count == 1
    assert limits == [bounded.MEMORY + decoded_size.MEMORY] * 2


def test_every_row_of_a_table_is_decoded_while_there_is_time(tmp_path):
    rows = table(70).to_pydict()["image"]
    for row in (3, 40, 66):
        rows[row] = {"bytes": b"bad", "path": None}
    path = parquet(tmp_path / "a.parquet", table(70, image=rows))
    examined = verify_all(find(tmp_path), time.monotonic() + 60)
    assert [problem.subject for problem in examined.bad] == [f"{path} row {row}" for row in (3, 40, 66)]
    assert examined.count == 70
    assert verify_all(find(tmp_path), time.monotonic()) == Examined(0, {}, {})


def test_examining_names_every_bad_image():
    examined = examine(
        range(20), lambda index: f"row {index}", lambda index: b"" if index in (3, 17) else PNG
    )
    found = {index: (problem.subject, problem.code) for index, problem in examined.problems.items()}
    assert found == {3: ("row 3", 66), 17: ("row 17", 66)}
