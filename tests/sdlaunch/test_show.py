"""What people read of a job."""

import dataclasses

from sdlaunch import plan, show
from tests.sdlaunch.place import HOME, clean_environment


def test_a_run_begins_with_each_warning_on_a_line_of_its_own(place):
    job = plan.prepare((), clean_environment(**place), HOME)
    lines = show.start(dataclasses.replace(job, warnings=("one", "two"))).splitlines()
    assert lines[-2:] == ["warning: one", "warning: two"]
    assert lines[0].startswith("model: ") and not [line for line in lines if line.startswith(" ")]
