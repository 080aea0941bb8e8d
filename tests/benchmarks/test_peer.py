"""Tests of benchmarks/peer: taking turns, and the table of measurements."""

import importlib.util
import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

PEER = Path(__file__).parents[2] / "benchmarks" / "peer"


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(f"peer_{name}", PEER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where its dataclasses look up their types
        spec.loader.exec_module(module)
        return module


@pytest.fixture(scope="module")
def table():
    return loaded("table")


def test_turns(tmp_path):
    turns = loaded("turns")
    steps: list[tuple[int, int]] = []  # (program, step), as they end

    def program(position: int) -> None:
        mine = turns.Turns.of(turns.Turns(tmp_path, position, programs=3, steps=4).environment())
        for step in range(1, mine.steps + 1):
            steps.append((position, step))
            mine.over(step)

    assert turns.Turns.of({}) is None
    programs = [threading.Thread(target=program, args=(position,), daemon=True) for position in range(3)]
    starter = threading.Thread(target=turns.start, args=(tmp_path, 3, lambda: True), daemon=True)
    starter.start()
    while not (tmp_path / "starter").exists():
        time.sleep(0.01)
    for each in programs:
        each.start()
    for each in (starter, *programs):
        each.join(10)
        assert not each.is_alive()
    assert sorted(steps[:3]) == [(0, 1), (1, 1), (2, 1)], "the first steps are taken by all at once"
    assert steps[3:] == [(position, step) for step in (2, 3, 4) for position in (0, 1, 2)]


def test_a_program_that_ended_is_not_waited_for(tmp_path):
    with pytest.raises(RuntimeError, match="before its first step"):
        loaded("turns").start(tmp_path, 2, alive=lambda: False)


def notes(begins: list[tuple[float, float]], ends: list[tuple[float, float]], peak: int) -> dict:
    return {"begins": begins, "ends": ends, "peak_bytes": peak}


def test_a_run_of_two_processes(table):
    ends = [(105.0, 5.0), (107.0, 6.0), (108.0, 6.5), (110.0, 7.0), (111.0, 9.0)]
    begins = [(105.5, 5.0), (107.0, 6.0), (109.0, 6.75), (110.0, 7.0), (111.0, 9.0)]
    other = [(time + 0.25, 2 * cpu) for time, cpu in begins], [(time + 0.25, 2 * cpu) for time, cpu in ends]
    run = table.measured([notes(begins, ends, 300), notes(*other, 200)], began=100.0, ended=112.0, skip=2)
    assert (run.code, run.seconds, run.first_step, run.peak_bytes) == (0, 12.0, 5.0, 500)
    assert run.steps == (1.0, 1.0), "the third step and the fourth, without what lies between them"
    assert run.cpus == (1.5, 0.75), "of both processes"
    assert run.first_cpu == 15.0


def test_an_interrupted_command_finds_its_runs_again(table):
    case = table.Case("dreambooth, prior", resolution=64, batch=1, processes=2, images=4)
    runs = [table.Run(0, began=1.5, seconds=9.0, peak_bytes=7.0, steps=(0.5, 0.25), cpus=(0.4, 0.2))]
    failed = table.Run(70, began=2.5)
    row = {**asdict(case), "trainer": "diffusers", "runs": [table.known(run) for run in (*runs, failed)]}
    found = table.read(json.loads(json.dumps([row])))
    assert list(found) == [(case, "diffusers")]
    assert found[case, "diffusers"][0].steps == (0.5, 0.25)
    assert [table.known(run) for run in found[case, "diffusers"]] == [
        table.known(run) for run in (*runs, failed)
    ]


def test_the_table_compares_turn_by_turn(table):
    case = table.Case("text_to_image", 64, batch=4, processes=2, images=8)
    common = {"began": 0.0, "seconds": 9.0, "peak_bytes": 2**20}
    turns = {
        # The machine is ten times slower in the second turn.
        (case, "peer"): [table.Run(0, **common, steps=(0.5, 5.0, 0.5), cpus=(0.4, 4.0, 0.4))],
        (case, "ours"): [table.Run(0, **common, steps=(0.25, 2.5, 0.25), cpus=(0.3, 3.0, 0.3))],
    }
    lines = table.steps({"date": "today"}, turns, "peer").splitlines()
    assert "- date: today" in lines
    assert "| text_to_image | ours | 2.00 | 0.75 | 1.00 |" in lines
    assert "| all | ours | 2.00 | 0.75 | 1.00 |" in lines
    assert "| text_to_image | 64 | 4 | 2 | ours | 250 | 4.0 | 32.0 | 300 | 1 | 0 | 2.00 | 0.75 |" in lines


def test_the_table_of_starts_leaves_out_what_failed(table):
    case = table.Case("text_to_image", 64, batch=4, processes=2, images=8)
    good = table.Run(0, began=0.0, seconds=9.0, first_step=4.0, first_cpu=3.0)
    lines = table.starts({"date": "today"}, {(case, "ours"): [good, table.Run(70, 0.0)]}).splitlines()
    assert lines[-1] == "| text_to_image | 2 | ours | 4.0 | 3.0 | 9.0 | 0 70 |"
    assert table.known(table.Run(70, 0.0)) == {"code": 70, "began": 0.0, "steps": (), "cpus": ()}
