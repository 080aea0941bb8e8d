"""Tests of log_file: times, bounds, modes, and a disk that is full."""

import errno
import os
import re

from sdlaunch.supervise.log_file import LogFile


def test_every_line_has_its_time_and_a_later_start_appends(tmp_path):
    (tmp_path / "logs").mkdir()
    for text in ("one\ntwo", "drei \udcff"):
        log = LogFile(tmp_path / "logs" / "x.log")
        log.write(text)
        log.close()
    lines = (tmp_path / "logs" / "x.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["one", "two", "drei \\udcff"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)
    assert (tmp_path / "logs" / "x.log").stat().st_mode & 0o777 == 0o600


def test_a_full_log_makes_room_for_another_and_two_are_kept(tmp_path):
    log = LogFile(tmp_path / "x.log", largest=100)
    for number in range(20):
        log.write(f"line {number}")  # 27 or 28 bytes
    kept = [(tmp_path / name).read_text().splitlines() for name in ("x.log.1", "x.log")]
    assert [line.rpartition(" ")[2] for lines in kept for line in lines] == ["15", "16", "17", "18", "19"]
    assert {path.name for path in tmp_path.iterdir()} == {"x.log", "x.log.1"}


def full(*_):
    raise OSError(errno.ENOSPC, "full")


def test_a_full_disk_and_a_folder_that_is_gone_stop_nothing(tmp_path, monkeypatch):
    log = LogFile(tmp_path / "full.log")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        log.write("lost")
    (tmp_path / "gone").mkdir()
    log = LogFile(tmp_path / "gone" / "x.log", largest=10)
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    for _ in range(3):
        log.write("long enough to be moved aside")
    log.close()
