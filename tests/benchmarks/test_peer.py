"""The comparison with the example scripts: from what the processes note to the figures of the table."""

import importlib.util
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "benchmarks" / "peer" / "table.py"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("peer_table", TABLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where its dataclasses look up their types
        spec.loader.exec_module(module)
        yield module


def notes(walls: list[float], cpus: list[float], peak: int) -> dict:
    return {"walls": walls, "cpus": cpus, "peak_bytes": peak}


def test_a_run_of_two_processes(table):
    first = notes([105.0, 107.0, 108.0, 110.0], [5.0, 6.0, 6.5, 7.0], 300)
    second = notes([105.5, 107.5, 108.5, 110.5], [4.0, 5.0, 5.25, 6.0], 200)
    run = table.measured([first, second], began=100.0, ended=112.0, skip=2)
    assert (run.seconds, run.first_step, run.ending, run.peak_bytes) == (12.0, 5.0, 2.0, 500)
    assert run.steps == (1.0, 2.0), "the first two end before what is measured begins"
    assert run.cpus == (0.75, 1.25), "of both processes"


def test_figures_of_several_runs_leave_out_the_failed(table):
    good = {"first_step": 4.0, "ending": 1.0, "peak_bytes": 2.0}
    runs = [
        table.Run(0, 0.0, 9.0, **good, steps=(1.0, 5.0), cpus=(1.0, 2.0)),
        table.Run(0, 0.0, 9.0, **{**good, "first_step": 6.0}, steps=(2.0,), cpus=(3.0,)),
        table.Run(70, 0.0, 9.0),
    ]
    assert table.figures(runs) == table.Figures(
        first_step=5.0, step=2.0, cpu=1.5, peak_bytes=2.0, ending=1.0, codes=(0, 70)
    )


def test_the_table_compares_with_the_peer(table):
    case = table.Case("text_to_image", 64, batch=4, processes=2, images=8)
    common = {"began": 0.0, "seconds": 9.0, "ending": 1.0, "peak_bytes": 2**20, "cpus": (0.2,)}
    runs = {
        (case, "peer"): [table.Run(0, **common, first_step=8.0, steps=(0.5,))],
        (case, "ours"): [table.Run(0, **common, first_step=4.0, steps=(0.25,))],
    }
    lines = table.rendered({"date": "today"}, runs, "peer").splitlines()
    assert "- date: today" in lines
    assert "| text_to_image | ours | 2.00 | 1.00 | 0.50 | 1.00 |" in lines
    row = "| text_to_image | 64 | 4 | 2 | ours | 4.0 | 4.0 | 32.0 | 200 | 1 | 1.0 | 0 | 2.00 | 1.00 |"
    assert lines[-2] == row
