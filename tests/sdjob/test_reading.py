"""Tests of reading: whatever a path leads to and a text says, it ends soon, and in an expected error."""

import os
import threading
import time

import pytest
import yaml

from sdjob import reading
from sdjob.files import read_json
from sdjob.problems import JobError

DEEP = "[" * 100_000


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(bytes(2000))
    reasons = {
        "pipe": "not a regular file",
        "device": "not a regular file",
        "large": "larger than",
        ".": "directory",
    }
    for name, reason in reasons.items():
        with pytest.raises(OSError, match=reason):
            reading.content(tmp_path / name, limit=1000)
    assert reading.content(tmp_path / "large", limit=2000) == bytes(2000)
    for name in ("pipe", "device"):
        with pytest.raises(JobError, match="not a regular file"):
            read_json(tmp_path / name)


def test_a_pipe_of_settings_is_read_to_its_end_and_not_waited_for_longer(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="nothing writes"):  # nothing has it open: it seems to have ended
        reading.content(path, patience=0.05)
    writer = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match="nothing writes"):
        reading.content(path, patience=0.05)
    os.write(writer, b"lr=1\n")
    threading.Timer(0.1, os.close, [writer]).start()
    assert reading.content(path, patience=5) == b"lr=1\n"


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "nan", "{", "9" * 5000, b"\xff", b"\0"])
def test_json(text):
    if text == "nan":
        text = "NaN,"
    with pytest.raises(ValueError):
        reading.json_of(text)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "[0.5, NaN]"])
def test_a_config_with_a_number_that_is_not_finite_is_refused(tmp_path, number):
    path = tmp_path / "config.json"
    path.write_text(f'{{"norm_eps": {number}}}')
    with pytest.raises(JobError, match=r"(NaN|-Infinity|1e999) is not a finite number"):
        read_json(path)
    path.write_text('{"norm_eps": 1e-05}')
    assert read_json(path) == {"norm_eps": 1e-05}


@pytest.mark.parametrize(
    "text", [DEEP, "a: " + "{" * 5000, "a: b: c", "\0", "2020-99-99", "!!int x", "{[a]: b}", "!!python/object:os.x y"]
)  # fmt: skip
def test_yaml(text):
    with pytest.raises(ValueError) as refused:
        reading.yaml_of(text, yaml.SafeLoader)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
def test_of_threads_the_order_is_that_of_the_items(count):
    assert reading.in_threads(lambda number: number**2, range(count)) == [
        number**2 for number in range(count)
    ]


def test_threads_wait_for_all_at_once():
    begin = time.monotonic()
    reading.in_threads(lambda _: time.sleep(0.05), range(32))
    assert time.monotonic() - begin < 1.0  # one after the other: 1.6 s


def test_errors_are_raised():
    with pytest.raises(ZeroDivisionError):
        reading.in_threads(lambda number: 1 / number, [2, 1, 0])
