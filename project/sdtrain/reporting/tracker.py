"""The tracker: the first rank writes metrics, images and texts to metrics.jsonl, TensorBoard and other trackers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdjob.writing import make_folder, opened
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
            make_folder(layout.tensorboard, layout.root)
            board = partial(TensorBoard, layout.tensorboard, first_step, hyperparameters(spec))
            writers.append(stack.enter_context(closing(Later(board))))
        writers += [stack.enter_context(closing(each)) for each in connected(spec, layout, say)]
        yield Tracker(tuple(writers), stack.enter_context(closing(EventsFile(layout))))


class Later:
    """Opens a writer at the first metrics, since its import takes long; images and texts wait until then."""

    def __init__(self, opening: Callable[[], Writer]) -> None:
        self._opening = opening
        self._writer: Writer | None = None
        self._waiting: list[Callable[[Writer], None]] = []

    def _opened(self) -> Writer:
        if self._writer is None:
            self._writer = self._opening()
            for write in self._waiting:
                write(self._writer)
            self._waiting.clear()
        return self._writer

    def _add(self, write: Callable[[Writer], None]) -> None:
        write(self._writer) if self._writer else self._waiting.append(write)

    def log(self, metrics: StepMetrics) -> None:
        self._opened().log(metrics)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._add(lambda writer: writer.image(tag, image, step))

    def text(self, tag: str, text: str) -> None:
        self._add(lambda writer: writer.text(tag, text))

    def flush(self) -> None:
        self._opened().flush()

    def close(self) -> None:
        self._opened().close()


class TensorBoard:
    """Writes an event file, with the tags of the table in metrics.py.

    The file is opened once: PyTorch's SummaryWriter opens its own by name for each flush, and so fails when the folder
    was removed, and follows a link that has taken the place of the folder.
    """

    def __init__(self, folder: Path, first_step: int, settings: Mapping[str, str | float]) -> None:
        """`settings`: columns of the page "HParams", on which runs are compared."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event: Any = Event
        self._summary: Any = summary  # not annotated in PyTorch
        make_folder(folder, folder.parent)
        while list(folder.glob(f"*.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        second = int(time.time())
        _name_before(folder, second)
        path = folder / f"{_EVENTS}{second:010d}.{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}"
        file = os.fdopen(opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")
        self._records: Any = RecordWriter(file)
        # Hides what an earlier process wrote of the steps to come: those after the checkpoint, or all.
        purge = first_step + 1 if first_step else 0
        self._write(purge, file_version="brain.Event:2")
        self._write(purge, session_log=SessionLog(status=SessionLog.START))
        layout = {title: ["Multiline", tags] for title, tags in charts().items()}
        self._write(0, summary=self._summary.custom_scalars({"metrics": layout}))
        # add_hparams would write a run of its own, in a folder below this one.
        compared = dict.fromkeys((TAGS["loss"], *(TAGS[name] for name in VALIDATION)), 0)
        for each in self._summary.hparams({**settings}, compared):
            self._write(0, summary=each)

    def _write(self, step: int, at: float | None = None, **content: Any) -> None:
        event = self._event(wall_time=time.time() if at is None else at, step=step, **content)
        self._records.write(event.SerializeToString())

    def log(self, metrics: StepMetrics) -> None:
        for name, tag in TAGS.items():
            if (value := getattr(metrics, name)) is not None:
                self._write(metrics.step, metrics.time, summary=self._summary.scalar(tag, value))
        self.flush()

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        encoded = BytesIO()
        image.save(encoded, "PNG")
        size = {"height": image.height, "width": image.width, "colorspace": len(image.getbands())}
        # PyTorch's function would compute in fp32.
        shown = Summary.Image(encoded_image_string=encoded.getvalue(), **size)
        self._write(step, summary=Summary(value=[Summary.Value(tag=tag, image=shown)]))

    def text(self, tag: str, text: str) -> None:
        # A path may hold bytes that are not UTF-8.
        self._write(0, summary=self._summary.text(tag, text.encode(errors="backslashreplace").decode()))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def _name_before(folder: Path, second: int) -> None:
    """Give event files that are named after a later second, since the clock was set back, earlier names.

    TensorBoard reads them in the order of their names, which begin with the second of their creation.
    """
    for path in sorted(folder.glob(f"{_EVENTS}*"), reverse=True):
        created, _, rest = path.name.removeprefix(_EVENTS).partition(".")
        if created.isdecimal():
            second = min(int(created), second - 1)
            path.rename(path.with_name(f"{_EVENTS}{second:010d}.{rest}"))
