"""The tracker: the first rank writes metrics, images and texts to metrics.jsonl, TensorBoard and other trackers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdjob.writing import make_folder
from sdtrain.reporting.events import EventsFile, Kind
from sdtrain.reporting.metrics import TAGS, VALIDATION, MetricsFile, StepMetrics, charts
from sdtrain.reporting.trackers import connected, hyperparameters

_EVENTS = "events.out.tfevents."


class Writer(Protocol):
    """One destination of metrics, images and texts; it leaves out what it cannot show."""

    def log(self, metrics: StepMetrics) -> None: ...

    def image(self, tag: str, image: Image.Image, step: int) -> None: ...

    def text(self, tag: str, text: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Tracker:
    """Passes everything on to its writers; ranks other than the first have none."""

    writers: tuple[Writer, ...] = ()
    events: EventsFile | None = None

    def log(self, metrics: StepMetrics) -> None:
        for writer in self.writers:
            writer.log(metrics)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        for writer in self.writers:
            writer.image(tag, image, step)

    def text(self, tag: str, text: str) -> None:
        for writer in self.writers:
            writer.text(tag, visible(text))

    def event(self, kind: Kind, step: int, text: str = "") -> None:
        """Something that happened at a step."""
        if self.events:
            self.events.add(kind, step, visible(text))

    def flush(self) -> None:
        """Write everything so far, so that a run killed after its checkpoint loses nothing from before."""
        for writer in self.writers:
            writer.flush()


@contextmanager
def tracker(
    spec: RunSpec, layout: OutputLayout, first_step: int, say: Callable[[str], None], *, writing: bool
) -> Iterator[Tracker]:
    """The tracker of this rank; its files are complete when the block ends. Another writer of files is a line here."""
    if not writing:
        yield Tracker()
        return
    with ExitStack() as stack:
        writers: list[Writer] = [stack.enter_context(closing(MetricsFile(layout.metrics, first_step)))]
        if {"tensorboard", "all"} & {*spec.report_to}:
            board = TensorBoard(layout.tensorboard, first_step, hyperparameters(spec))
            writers.append(stack.enter_context(closing(board)))
        writers += [stack.enter_context(closing(each)) for each in connected(spec, layout, say)]
        yield Tracker(tuple(writers), stack.enter_context(closing(EventsFile(layout))))


class TensorBoard:
    """Writes event files; their tags are those of the table in metrics.py."""

    def __init__(self, folder: Path, first_step: int, settings: Mapping[str, str | float]) -> None:
        """`settings`: columns of the page "HParams", on which runs are compared."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        make_folder(folder, folder.parent)
        while list(folder.glob(f"*.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        _name_before(folder, int(time.time()))
        # Hides what an earlier process wrote of the steps to come: those after the checkpoint, or all.
        purge = first_step + 1 if first_step else 0
        # It opens what has the name of its file: so that no link can, the name has a random end.
        self._events = SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{os.urandom(4).hex()}")
        layout = {title: ["Multiline", tags] for title, tags in charts().items()}
        self._events.add_custom_scalars({"metrics": layout})
        # add_hparams would write a run of its own, in a folder below this one.
        columns: Any = hparams  # not annotated in PyTorch, as is file_writer
        file: Any = self._events.file_writer
        compared = dict.fromkeys((TAGS["loss"], *(TAGS[name] for name in VALIDATION)), 0)
        for summary in columns({**settings}, compared):
            file.add_summary(summary)

    def log(self, metrics: StepMetrics) -> None:
        for name, tag in TAGS.items():
            if (value := getattr(metrics, name)) is not None:
                self._events.add_scalar(tag, value, metrics.step, metrics.time)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._events.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        # A path may hold bytes that are not UTF-8.
        self._events.add_text(tag, text.encode(errors="backslashreplace").decode())

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _name_before(folder: Path, second: int) -> None:
    """Give event files that are named after a later second, since the clock was set back, earlier names.

    TensorBoard reads them in the order of their names, which begin with the second of their creation.
    """
    for path in sorted(folder.glob(f"{_EVENTS}*"), reverse=True):
        created, _, rest = path.name.removeprefix(_EVENTS).partition(".")
        if created.isdecimal():
            second = min(int(created), second - 1)
            path.rename(path.with_name(f"{_EVENTS}{second:010d}.{rest}"))
