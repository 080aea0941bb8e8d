"""What people read about a job. Tests of text and `sdlaunch/display/tables.py`."""

import dataclasses

from sdlaunch import plan
from sdlaunch.display import text as display
from tests.sdlaunch.workspace import HOME, clean_environment


def test_a_run_starts_with_each_warning_on_its_own_line(workspace):
    job = plan.prepare((), clean_environment(**workspace), HOME)
    lines = display.start(dataclasses.replace(job, warnings=("one", "two"))).splitlines()
    assert lines[-2:] == ["warning: one", "warning: two"]
    assert lines[0].startswith("model: ") and not [line for line in lines if line.startswith(" ")]


def test_the_most_important_part_of_a_plan_is_nearest_to_the_prompt(workspace):
    job = plan.prepare((("lr", "1e-4"),), clean_environment(**workspace, epoch="2"), HOME)
    text = display.plan(job)
    titles = [
        line for line in text.splitlines() if line and not line.startswith((" ", "python", "env", "/", "#"))
    ]
    order = ["Settings at their default", "Settings", "Mounts", "Arithmetic", "Command", "Problems"]
    assert [title for title in titles if title in order] == order
    chosen = text[text.index("\nSettings\n") : text.index("\nMounts\n")]
    names = [line.split()[0] for line in chosen.splitlines() if line.startswith("  ")]
    assert (
        names.index("output_dir") < names.index("num_train_step") < names.index("epoch") < names.index("lr")
    )
    assert names[-6:] == [name for name in job.settings if name in job.given]
    assert text.endswith("none: the job can start")


def test_defaults_are_faint_on_a_terminal_only(workspace):
    job = plan.prepare((), clean_environment(**workspace), HOME)
    pale = display.plan(job, dim=True)
    assert pale.count("\033[2m") == pale.count("\033[22m") == 1
    assert pale.index("\033[22m") < pale.index("\nSettings\n")
    assert "\033" not in display.plan(job)
