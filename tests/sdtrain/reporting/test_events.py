"""Tests of events: one line each, in a file that a later start appends to."""

import json

from sdjob.output.layout import OutputLayout
from sdtrain.reporting.events import EventsFile


def test_events_of_two_starts(tmp_path):
    layout = OutputLayout(tmp_path)
    for step in (1, 2):
        file = EventsFile(layout)
        file.add("checkpoint", step, "é")
        assert len(layout.events.read_text().splitlines()) == step, "written at once"
        file.close()
    found = [json.loads(line) for line in layout.events.read_text().splitlines()]
    assert [(each["kind"], each["step"], each["text"]) for each in found] == [
        ("checkpoint", 1, "é"),
        ("checkpoint", 2, "é"),
    ]
