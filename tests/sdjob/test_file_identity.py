"""A file is known by its content, in bounded time."""

import os

import pytest

from sdjob.file_identity import EDGE, content_id, edges


def test_head_tail_and_size_of_a_weight_file(tmp_path):
    """Models have gigabytes: a megabyte at either end, and the size, tell them apart."""
    path = tmp_path / "model.safetensors"
    content = bytearray(4 * EDGE)
    path.write_bytes(content)
    before = edges(path)
    assert len(before) == 2 * EDGE + len(f"{path.name}/{4 * EDGE}/")
    for position, counts in (
        (0, True),
        (EDGE - 1, True),
        (EDGE, False),
        (3 * EDGE - 1, False),
        (3 * EDGE, True),
    ):
        changed = content.copy()
        changed[position] = 1
        path.write_bytes(changed)
        assert (edges(path) != before) is counts, position
    path.write_bytes(b"abc")  # head and tail overlap
    assert edges(path) == b"model.safetensors/3/abcabc"


@pytest.mark.parametrize("position", [0, 1000, 2999])
def test_every_byte_of_a_small_file_counts_and_neither_name_nor_time(tmp_path, position):
    path, other = tmp_path / "a", tmp_path / "b"
    content = bytearray(os.urandom(3000))
    path.write_bytes(content)
    other.write_bytes(content)
    os.utime(other, (0, 0))
    assert content_id(path) == content_id(other)
    content[position] ^= 1
    other.write_bytes(content)
    os.utime(other, (path.stat().st_atime, path.stat().st_mtime))
    assert content_id(path) != content_id(other)


def test_a_large_file_is_sampled_from_head_to_tail(tmp_path):
    path, size = tmp_path / "large", 62 * EDGE
    with path.open("wb") as file:
        file.truncate(size)
    before = content_id(path)

    def notices(position: int, tail: int = EDGE, count: int = 1) -> bool:
        known = content_id(path, tail)
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"\1" * count)
        changed = content_id(path, tail) != known
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"\0" * count)
        return changed

    assert all(notices(position) for position in (0, EDGE - 1, EDGE, size - EDGE - 1, size - EDGE, size - 1))
    assert not notices(2 * EDGE)  # between samples
    assert notices(size - 3 * EDGE, tail=3 * EDGE)
    assert notices(30 * EDGE, count=5 * EDGE)
    assert content_id(path) == before
    with path.open("r+b") as file:
        file.truncate(size + 1)
    assert content_id(path) != before


def test_a_pipe_has_no_identity_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for identity in (content_id, edges):
        with pytest.raises(OSError, match="not a regular file"):
            identity(tmp_path / "pipe")
