"""Tests of curves: reading on, resumed runs, and a bounded number of points."""

import json

import pytest

from sdjob.page import curves
from sdjob.page.curves import Curves


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def lines(path, *rows, mode="a"):
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def at(step, **values):
    return {"step": step, "time": 100.0 + step, **values}


def test_without_a_file_there_are_no_points(metrics):
    read = Curves(metrics)
    read.update()
    assert read.columns() == {"step": [], "time": []}


def test_reads_on_from_the_last_complete_line(metrics):
    read = Curves(metrics)
    lines(metrics, at(1, loss=0.5))
    with metrics.open("a") as file:
        file.write('{"step": 2, "time": 102.0, "lo')
    read.update()
    assert read.columns() == {"step": [1], "time": [101.0], "loss": [0.5]}
    with metrics.open("a") as file:
        file.write('ss": 0.25}\n')
    read.update()
    assert read.columns() == {"step": [1, 2], "time": [101.0, 102.0], "loss": [0.5, 0.25]}


def test_training_and_validation_of_a_step_are_one_point(metrics):
    lines(metrics, at(1, loss=0.5), at(2, loss=0.4), at(2, validation_loss=0.3))
    read = Curves(metrics)
    read.update()
    assert read.columns() == {
        "step": [1, 2],
        "time": [101.0, 102.0],
        "loss": [0.5, 0.4],
        "validation_loss": [None, 0.3],
    }


def test_a_resumed_run_supersedes_the_steps_that_it_repeats(metrics):
    lines(metrics, at(0), at(1, loss=0.5), at(2, loss=0.4), at(3, loss=0.3), at(1), at(2, loss=0.45))
    read = Curves(metrics)
    read.update()
    assert read.columns()["step"] == [1, 2]
    assert read.columns()["loss"] == [0.5, 0.45]
    assert read.starts == [(0, 100.0), (1, 101.0)]


def test_another_file_of_the_name_is_read_from_its_beginning(metrics):
    lines(metrics, *(at(step, loss=1.0) for step in range(1, 9)))
    read = Curves(metrics)
    read.update()
    metrics.unlink()
    lines(metrics, at(1, loss=2.0))
    read.update()
    assert read.columns()["loss"] == [2.0]


def test_damaged_lines_are_left_out(metrics):
    metrics.write_bytes(
        b'\xff\xfe\n[1]\n{"step": "x"}\n{"time": 1}\n{"step": 1, "time": 5, "loss": NaN, "x": "y"}\n'
    )
    lines(metrics, at(2, loss=0.5))
    read = Curves(metrics)
    read.update()
    assert read.columns()["loss"] == [0.5]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1e400, "loss": 1}',
        '{"step": 2, "loss": 1%s}' % ("0" * 400),
        '{"step": 2, "time": 1e400, "loss": 1}',
    ],
)
def test_numbers_without_bound_are_left_out(metrics, line):
    lines(metrics, at(1, loss=0.5))
    with metrics.open("a") as file:
        file.write(line + "\n")
    read = Curves(metrics)
    read.update()
    assert read.columns() == {"step": [1], "time": [101.0], "loss": [0.5]}


def test_a_long_run_has_a_bounded_number_of_points_which_are_means(metrics, monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 4)
    lines(metrics, *(at(step, loss=float(step)) for step in range(1, 18)))
    read = Curves(metrics)
    read.update()
    assert read.group == 4
    assert read.columns()["step"] == [4, 8, 12, 16, 17]
    assert read.columns()["loss"] == [2.5, 6.5, 10.5, 14.5, 17.0]


def test_names_without_end_take_no_memory_without_end(metrics, monkeypatch):
    monkeypatch.setattr(curves, "_NAMES", 3)
    lines(
        metrics, at(1, loss=0.5, x=1), *(at(step, **{f"name-{step}": 1, "loss": 0.5}) for step in (2, 3, 4))
    )
    lines(metrics, *(at(step) for step in range(5, 20_000)))
    read = Curves(metrics)
    read.update()
    assert read.columns().keys() == {"step", "time", "loss", "x", "name-2"}
    assert len(read.starts) == curves._STARTS and read.starts[-1][0] == 19_999


def test_of_a_file_that_claims_to_be_huge_the_end_is_read(metrics):
    with metrics.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, 2)
        file.write(b"\n")
    lines(metrics, at(1, loss=0.5))
    read = Curves(metrics)
    read.update()
    assert read.columns()["loss"] == [0.5]


def test_another_file_is_read_from_its_beginning_even_with_the_number_of_the_old_one(metrics):
    lines(metrics, at(1, loss=0.5))
    read = Curves(metrics)
    read.update()
    lines(metrics, {"step": 7, "time": 9.0, "loss": 0.1}, {"step": 8, "time": 10.0, "loss": 0.2}, mode="w")
    read.update()
    assert read.columns() == {"step": [7, 8], "time": [9.0, 10.0], "loss": [0.1, 0.2]}
