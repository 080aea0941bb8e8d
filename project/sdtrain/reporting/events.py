"""run/events.jsonl: one line for each thing that happened, for the time axis of the page."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Literal

from sdjob import writing
from sdjob.output.layout import OutputLayout

Kind = Literal["training", "checkpoint", "validation", "skip", "warning"]


class EventsFile:
    """Appends events, also from the thread that saves."""

    def __init__(self, layout: OutputLayout) -> None:
        layout.make(layout.run)
        descriptor = writing.opened(layout.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._file = os.fdopen(descriptor, "w", encoding="ascii", buffering=1)  # by lines

    def add(self, kind: Kind, step: int, text: str = "") -> None:
        values = {"kind": kind, "step": step, "time": round(time.time(), 3), "text": text}
        with contextlib.suppress(OSError):  # no run ends for want of these
            self._file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        self._file.close()
