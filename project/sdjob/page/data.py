"""What the page shows, collected from the files of the output folder: metrics, events, samples, settings, the end."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.model.architectures import ARCHITECTURE_FACTS
from sdjob.output import starts, usage
from sdjob.output.layout import OutputLayout
from sdjob.page.curves import Curves
from sdjob.protocol import TRAINING
from sdjob.settings.recipes import RECIPES

EVENTS = 400  # at most on the page; of more, the oldest and the newest
_STEPS = 500  # of samples
_SAMPLES = re.compile(r"step-(\d{6,})")
_IMAGE = re.compile(r"prompt(\d{2,})-(\d{2,})\.png")
_TEXT = 2000  # characters of a text
_ITEMS, _KEYS = 200, 1000  # of a list and of an object
_DEPTH = 8  # of values in values


@dataclass(frozen=True)
class Alive:
    """What the first rank is doing; `done` and `total` count what the stage counts."""

    stage: str
    since: float
    step: int | None = None
    done: int | None = None
    total: int | None = None


def collect(
    layout: OutputLayout,
    curves: Curves,
    *,
    alive: Alive | None = None,
    report: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    failure: Mapping[str, Any] | None = None,
    ended: str = "",
) -> dict[str, Any]:
    """The content of the page, for JSON. A missing, damaged or foreign file counts as empty.

    `alive`: of a run that goes on; `ended`: how one ended, if there is no report and no failure. `report`, `plan` and
    `failure` take the place of files that are not written yet, or not meant for this run.
    """
    curves.update()
    report = report or ({} if alive else _object(layout.report))
    plan = plan or _object(layout.run / "plan.json")
    failure = failure or ({} if alive else _object(layout.failure))
    state = "running" if alive else "failed" if failure else "finished" if report else ended or "stopped"
    steps = alive.total if alive and alive.stage == TRAINING else None
    settings = _settings(plan, report)
    values = {name: value for name, value, _ in settings}
    metrics = curves.columns()
    return {
        "written": round(time.time(), 1),
        "state": state,
        "stage": asdict(alive) if alive else None,
        "title": _title(values),
        "about": [str(line)[:_TEXT] for line in _list(plan.get("arithmetic"))],
        "mounts": _mounts(plan),
        "warnings": [str(line)[:_TEXT] for line in _list(plan.get("warnings"))],
        "total": report.get("max_train_steps") or steps or values.get("num_train_step"),
        "tiles": tiles(report, metrics, _spent(layout, report)),
        "metrics": metrics,
        "mean_of": curves.group,
        "events": events(layout, curves),
        "samples": samples(layout),
        "inputs": _inputs(layout),
        "settings": settings,
        "report": dict(report),
        "failure": _failure(failure),
        "result": str(layout.checkpoint),
        "usage": _usage(layout, report),
    }


def tiles(
    report: Mapping[str, Any], metrics: Mapping[str, Sequence[Any]], spent: Mapping[str, Any]
) -> list[tuple[str, float, str]]:
    """Title, value, and how page.js writes it (number, bytes, duration) of each tile that has a value.

    page.js puts those before them that follow its controls and clock: the smoothed loss and the time per step.
    """

    def logged(name: str) -> Any:
        return next((value for value in reversed(metrics.get(name, ())) if value is not None), None)

    def final(name: str) -> Any:
        return logged(name) if report.get(name) is None else report[name]

    peak = logged("peak_memory_gib")
    every = (
        *(
            (name.replace("_", " "), final(name), "number")
            for name in metrics
            if name.startswith("validation_")
        ),
        ("images/s", final("images_per_second"), "number"),
        ("learning rate", logged("learning_rate"), "number"),
        ("peak memory", report.get("peak_memory_bytes") or (peak and peak * 2**30), "bytes"),
        ("total run time", spent["seconds"], "duration"),
        ("device hours", spent["device_hours"], "number"),
    )
    return [(title, value, form) for title, value, form in every if isinstance(value, int | float)]


def events(layout: OutputLayout, curves: Curves) -> list[dict[str, Any]]:
    """What happened, in the order of time: run/events.jsonl, and the starts that metrics.jsonl knows of."""
    begun = [
        {
            "kind": "resume" if step else "start",
            "step": step,
            "time": at,
            "text": f"from step {step}" if step else "",
        }
        for step, at in curves.starts[-EVENTS:]
    ]
    found = [*begun, *_lines(layout.events)]
    found.sort(key=lambda event: float(event["time"]))
    return found if len(found) <= EVENTS else [*found[: EVENTS // 4], *found[-EVENTS * 3 // 4 :]]


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    with contextlib.suppress(OSError):
        for line in reading.content(path, reading.MESSAGE).splitlines():
            with contextlib.suppress(*reading.NOT_AS_WRITTEN):
                values = reading.json_of(line)
                step, at = values.get("step"), float(values["time"])
                lines.append(
                    {
                        "kind": str(values["kind"])[:40],
                        "step": None if step is None else int(step),
                        "time": at if math.isfinite(at) else 0.0,
                        "text": str(values.get("text", ""))[:_TEXT],
                    }
                )
    return lines


def samples(layout: OutputLayout) -> list[dict[str, Any]]:
    """The validations, by step: prompts, files of each prompt, and when they were written."""
    found = []
    left = reading.MESSAGE  # bytes of all these files
    with contextlib.suppress(OSError):
        folders = sorted(path for path in layout.samples.iterdir() if _SAMPLES.fullmatch(path.name))
        for folder in reversed(folders[-_STEPS:]):
            prompts, size = _value_and_size(folder / "prompts.json", left)
            left -= size
            if isinstance(prompts, list):
                found.append(
                    {
                        "step": int(folder.name.partition("-")[2]),
                        "folder": folder.relative_to(layout.root).as_posix(),
                        "version": int((folder / "prompts.json").stat().st_mtime),
                        "prompts": [str(prompt)[:_TEXT] for prompt in prompts[:_ITEMS]],
                        "images": _images(folder, min(len(prompts), _ITEMS)),
                    }
                )
    return sorted(found, key=lambda each: each["step"])


def _images(folder: Path, prompts: int) -> list[list[str]]:
    """The names of the images of each prompt. Raises OSError."""
    images: dict[int, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if name := _IMAGE.fullmatch(path.name):
            images.setdefault(int(name[1]), []).append(path.name)
    return [images.get(index, []) for index in range(prompts)]


def _inputs(layout: OutputLayout) -> dict[str, Any] | None:
    prompts = _value(layout.input_prompts)
    with contextlib.suppress(OSError):
        if isinstance(prompts, list):
            version = int(layout.inputs.stat().st_mtime)
            path = layout.inputs.relative_to(layout.root).as_posix()
            return {
                "path": path,
                "version": version,
                "prompts": [str(each)[:_TEXT] for each in prompts[:_ITEMS]],
            }
    return None


def _settings(plan: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Name, value and source of each setting; of a worker without a launcher, what its report says."""
    found = plan.get("settings")
    if isinstance(found, dict):
        return [
            (str(name), each.get("value"), str(each.get("source", "")))
            for name, each in found.items()
            if isinstance(each, dict)
        ]
    simple = {name: value for name, value in report.items() if isinstance(value, str | int | float | bool)}
    return [(name, value, "report.json") for name, value in simple.items()]


def _title(values: Mapping[str, Any]) -> str:
    recipe = RECIPES.get(str(values.get("recipe")))
    rank = values.get("lora_rank")
    kind = f", LoRA of rank {rank}" if rank else ""
    return f"{recipe.title if recipe else 'Training'}{kind}"


def _mounts(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = plan.get("mounts")
    return [
        (str(name), str(each.get("uses", "")), str(each.get("found", "")))
        for name, each in (found if isinstance(found, dict) else {}).items()
        if isinstance(each, dict)
    ]


def _spent(layout: OutputLayout, report: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and device hours of all starts of the run; those of one that is still going on, up to now."""
    if "seconds" in report:
        return {name: report.get(name) for name in ("seconds", "device_hours")}
    every, now = starts.of_last_run(starts.read(layout)), starts.now(layout)
    spans = [(max(0.0, (each.until or now) - each.since), each.processes) for each in every]
    return {
        "seconds": round(sum(seconds for seconds, _ in spans), 1),
        "device_hours": round(sum(seconds * count for seconds, count in spans) / 3600, 4),
    }


def _failure(failure: Mapping[str, Any]) -> dict[str, Any] | None:
    """Class, evidence, problems and remedy; the traceback stays in failure.json, which is private."""
    if not failure:
        return None
    names = ("class", "code", "node", "root_rank", "step", "evidence", "remedy", "problems", "log")
    return {name: failure.get(name) for name in names}


def _usage(layout: OutputLayout, report: Mapping[str, Any]) -> list[dict[str, str]]:
    """How to load the result of a finished run, each with its title."""
    facts = next((each for each in ARCHITECTURE_FACTS.values() if each.name == report.get("model")), None)
    if not facts:
        return []
    model, folder = str(report.get("pretrained_model_name_or_path", "")), str(layout.checkpoint)
    prompt = next(iter([*_list(report.get("validation_prompts")), "a prompt"]))
    lora = bool(report.get("lora_rank"))
    return [
        {"title": "Generate images", "text": usage.command(folder, str(prompt))},
        {"title": "Python", "text": usage.python(model, facts.class_name, str(prompt), folder, lora=lora)},
    ]


def _list(value: Any) -> Sequence[Any]:
    return value[:_ITEMS] if isinstance(value, list) else []


def _value(path: Path) -> Any:
    value, _ = _value_and_size(path, reading.MESSAGE)
    return value


def _value_and_size(path: Path, limit: int) -> tuple[Any, int]:
    """The value of JSON in a file of at most so many bytes, and their number; None: there is none."""
    content = b""
    with contextlib.suppress(OSError, ValueError):
        content = reading.content(path, limit)
        return reading.json_of(content, lambda _: None), len(content)
    return None, len(content)


def _object(path: Path) -> dict[str, Any]:
    value = _bounded(_value(path))
    return value if isinstance(value, dict) else {}


def _bounded(value: Any, depth: int = _DEPTH) -> Any:
    """What is shown of a value; what is deeper is left out."""
    if isinstance(value, str):
        return value[:_TEXT]
    if not isinstance(value, dict | list):
        return value
    if not depth:
        return None
    if isinstance(value, list):
        return [_bounded(each, depth - 1) for each in value[:_ITEMS]]
    return {name[:_TEXT]: _bounded(each, depth - 1) for name, each in islice(value.items(), _KEYS)}
