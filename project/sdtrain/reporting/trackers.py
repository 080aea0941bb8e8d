"""Trackers of other makers, an adapter for each of choices.TRACKERS. None can end, delay or change a run.

Credentials and servers are those of their own environment variables; without any, they write below the output folder.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.settings.choices import TRACKERS
from sdjob.settings.fields import setting_of
from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting.metrics import TAGS, StepMetrics

_WAITING = 1000  # calls that wait for a slow server; further ones are a failure of the tracker
_PATIENCE = 15.0  # seconds for what still waits at the end of a run, or when a platform stops it

Settings = dict[str, str | float]


@dataclass(frozen=True)
class Start:
    """What an adapter starts its run with."""

    project: str
    name: str
    settings: Settings
    folder: Path


class Adapter(Protocol):
    """A started run of a tracker; all of its calls come from one thread."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def image(self, tag: str, image: Image.Image, step: int) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Reads WANDB_API_KEY, WANDB_MODE, WANDB_BASE_URL, …; without key and mode it is offline, and never asks."""

    def __init__(self, package: Any, start: Start) -> None:
        self._package = package
        self._run = package.init(
            project=start.project,
            name=start.name,
            config=start.settings,
            dir=str(start.folder),
            mode=_mode("WANDB"),
            settings=package.Settings(console="off"),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._run.log({tag: self._package.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """Reads MLFLOW_TRACKING_URI and its credentials; without an address it writes files."""

    def __init__(self, package: Any, start: Start) -> None:
        self._package = package
        if "MLFLOW_TRACKING_URI" not in os.environ:
            # A database file is no alternative: output folders may be on network file systems.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            package.set_tracking_uri(start.folder.absolute().as_uri())
        package.set_experiment(start.project)
        package.start_run(run_name=start.name)
        package.log_params(start.settings)

    def log(self, values: dict[str, float], step: int) -> None:
        self._package.log_metrics(values, step=step)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._package.log_image(image, f"{tag}/{step:06d}.png")

    def close(self) -> None:
        self._package.end_run()


class Swanlab:
    """Reads SWANLAB_API_KEY, SWANLAB_MODE, SWANLAB_API_HOST, …; without key and mode it is offline, and never asks."""

    def __init__(self, package: Any, start: Start) -> None:
        self._package = package
        package.init(
            project=start.project,
            experiment_name=start.name,
            config=start.settings,
            logdir=str(start.folder),
            mode=_mode("SWANLAB"),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._package.log(values, step=step)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._package.log({tag: self._package.Image(image)}, step=step)

    def close(self) -> None:
        self._package.finish()


ADAPTERS: dict[str, Callable[[Any, Start], Adapter]] = {"wandb": Wandb, "mlflow": Mlflow, "swanlab": Swanlab}


class Detached:
    """A writer that hands everything to an adapter in a thread; after an error it hands over nothing more."""

    def __init__(self, name: str, start: Callable[[], Adapter], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._calls: queue.Queue[Callable[[Adapter], None] | None] = queue.Queue(_WAITING)
        self._is_dropped = False
        self._thread = threading.Thread(target=self._work, args=(start,), name=name, daemon=True)
        self._thread.start()

    def log(self, metrics: StepMetrics) -> None:
        known = {name: value for name, value in asdict(metrics).items() if name in TAGS and value is not None}
        values = {TAGS[name]: value for name, value in known.items()}
        self._hand_over(lambda adapter: adapter.log(values, metrics.step))

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._hand_over(lambda adapter: adapter.image(tag, image, step))

    def text(self, tag: str, text: str) -> None:
        """The settings are the run's configuration; prompts are in the images."""

    def flush(self) -> None:
        """A checkpoint does not wait for a server."""

    def close(self) -> None:
        self._hand_over(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._drop(f"it has not finished within {_PATIENCE:.0f} s")

    def _hand_over(self, call: Callable[[Adapter], None] | None) -> None:
        if self._is_dropped:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._drop("it is slower than the run")

    def _work(self, start: Callable[[], Adapter]) -> None:
        try:
            adapter = start()
            while (call := self._calls.get()) and not self._is_dropped:
                call(adapter)
            adapter.close()
        except (Exception, SystemExit) as error:
            self._drop((f"{type(error).__name__}: {error}".splitlines() or [""])[0])

    def _drop(self, reason: str) -> None:
        if not self._is_dropped:
            self._is_dropped = True
            self._say(
                f"warning: report_to: {self._name} gets nothing more ({reason}); the run goes on without it"
            )


def connected(spec: RunSpec, layout: OutputLayout, say: Callable[[str], None]) -> list[Detached]:
    """The trackers of `report_to`, each starting in its own thread; of `all`, those that are installed."""
    chosen: list[str] = [name for name in TRACKERS if name in spec.report_to]
    if "all" in spec.report_to:
        chosen = [name for name in TRACKERS if name in chosen or find_spec(TRACKERS[name].module)]
    if chosen:
        layout.make(layout.trackers)
    root = layout.root.absolute()
    start = Start(spec.tracker_project_name, root.name or "output", hyperparameters(spec), layout.trackers)
    return [Detached(name, partial(_started, name, start), say) for name in chosen]


def _started(name: str, start: Start) -> Adapter:
    return ADAPTERS[name](import_module(TRACKERS[name].module), start)


def hyperparameters(spec: RunSpec) -> Settings:
    """What runs are compared by: the core settings, and the others that differ from their default; no paths."""
    found: Settings = {}
    for name, info in type(spec).model_fields.items():
        value, about = getattr(spec, name), setting_of(info)
        is_choice = about.core or value != info.default
        if value is None or not is_choice or about.flag_only or about.group == "logging":
            continue
        if not isinstance(value, (int, float)):
            text = value if isinstance(value, str) else ",".join(map(str, value))
            value = visible(text).encode(errors="backslashreplace").decode()  # a path may not be UTF-8
        found[name] = value
    return found


def _mode(prefix: str) -> Any:
    """None: as the environment says."""
    return None if {f"{prefix}_API_KEY", f"{prefix}_MODE"} & {*os.environ} else "offline"
