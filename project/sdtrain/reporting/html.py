"""report.html: the report as a page, with the loss curves and the images, in one file without scripts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sdjob.settings.recipes import RECIPES
from sdtrain.reporting.metrics import RunningMean

Points = Sequence[tuple[int, float]]  # (step, loss)

_STYLE = """
:root { color-scheme: light dark; --dim: #888; --line: #8884; --train: #06c; --held-out: #d60 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } .about, dt, td:first-child, text { color: var(--dim); fill: var(--dim) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; padding: 1rem 0 }
dl { align-items: end } dt { font-size: 13px } dd { margin: 0; font-size: 1.5rem }
table { border-collapse: collapse } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top }
img { max-width: 100% } svg { width: 100%; height: auto }
"""
_WIDTH, _HEIGHT, _LEFT, _MARGIN = 800, 260, 50, 25


@dataclass(frozen=True)
class Curves:
    """The losses of the whole run, earlier parts of a resumed one included."""

    training: Points
    held_out: Points = ()


def curves(tensorboard: Path) -> Curves:
    """What the event files hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tensorboard), size_guidance={"scalars": 2000})
    with _quiet("tensorboard"):  # of steps that a resumed run took again; the last word on each counts
        events.Reload()
    known = events.Tags()["scalars"]

    def points(tag: str) -> Points:
        return [(event.step, event.value) for event in events.Scalars(tag)] if tag in known else []

    return Curves(points("train/loss"), points("validation/loss"))


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Inside, a library logs nothing but errors."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def render(report: dict[str, Any], losses: Curves, grid: str | None) -> str:
    """The page; `grid` is the path of the before/after image, relative to the page."""
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _tiles(report))
    rows = "\n".join(
        f"<tr><td>{escape(key)}</td><td>{escape(_shown(value))}</td></tr>" for key, value in report.items()
    )
    samples = _samples(grid, report["validation_prompts"]) if grid else ""
    title = escape(_title(report))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>
<h1>{title}</h1>
<p class="about">{escape(_about(report))}</p>
<dl>{tiles}</dl>
{samples}
<h2>Loss</h2>
{_chart(losses)}
<details><summary>All figures</summary>
<table>
{rows}
</table></details>
</html>
"""


def _samples(grid: str, prompts: Sequence[str]) -> str:
    """The image, and its prompts in full: it has room for their beginnings, and a font for few languages."""
    listed = "".join(f"<li>{escape(prompt)}</li>" for prompt in prompts)
    image = f'<img src="{escape(grid)}" alt="samples">'
    return f'<h2>Before and after</h2><p>{image}</p><ol class="about" start="0">{listed}</ol>'


def _title(report: dict[str, Any]) -> str:
    recipe = RECIPES[report["recipe"]].title
    lora = f", LoRA of rank {report['lora_rank']}" if report["lora_rank"] else ""
    return f"{recipe}{lora}: {report['steps']:,} steps"


def _about(report: dict[str, Any]) -> str:
    """What ran where: the sums that a reader would otherwise have to look up."""
    when = report["finished"][:16].replace("T", " ")
    return (
        f"{report['pretrained_model_name_or_path']}, {report['num_examples']:,} images at "
        f"{report['resolution']} pixels, {report['global_batch_size']} a step; {report['world_size']} × "
        f"{report['device_name']}, {report['plugin']}, precision {report['precision']}; finished {when} UTC"
    )


def _tiles(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What people look for first; what was not measured is left out."""
    if rate := report["images_per_second"]:
        yield "images a second", f"{rate:.3g}"
    yield "time" if not report["resumed_from_step"] else "time of all starts", _duration(report["seconds"])
    yield "device hours", f"{report['device_hours']:.3g}"
    if peak := report["peak_memory_bytes"]:
        yield "peak memory a process", f"{peak / 1e9:.3g} GB"
    if report["mean_loss"] is not None:
        yield "mean loss", f"{report['mean_loss']:.4g}"
    if report["validation_loss"] is not None:
        yield "held-out loss", f"{report['validation_loss']:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else "–" if value is None else str(value)


def _chart(losses: Curves) -> str:
    """The losses as dots and their running mean as a line: single losses of diffusion say little. Those of the
    held-out images, at fixed timesteps, are a curve by themselves."""
    if len(losses.training) < 2:
        return "<p>Too few logged steps for a curve.</p>"
    running = RunningMean()
    mean = [(step, running.add(loss)) for step, loss in losses.training]
    every = (*losses.training, *losses.held_out)
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    low, high = min(loss for _, loss in every), max(loss for _, loss in every)

    def place(point: tuple[int, float]) -> tuple[float, float]:
        x = _LEFT + (point[0] - first) / max(1, last - first) * (_WIDTH - _LEFT - _MARGIN)
        y = _MARGIN + (high - point[1]) / ((high - low) or 1) * (_HEIGHT - 2 * _MARGIN)
        return round(x, 1), round(y, 1)

    def line(points: Points, colour: str) -> str:
        path = " ".join("{},{}".format(*place(point)) for point in points)
        return f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="1.5"/>'

    dots = "".join('<circle cx="{}" cy="{}" r="1.5"/>'.format(*place(point)) for point in losses.training)
    levels = "".join(_level(place((first, loss))[1], loss) for loss in _levels(low, high))
    legend = [_legend(0, "train", "training, running mean")]
    if losses.held_out:
        legend.append(_legend(1, "held-out", "held-out images"))
    return f"""<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="11">
{levels}<g fill="var(--train)" opacity=".35">{dots}</g>{line(mean, "train")}{line(losses.held_out, "held-out")}
<text x="{_LEFT}" y="{_HEIGHT - 6}">step {first}</text>
<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 6}" text-anchor="end">step {last}</text>{"".join(legend)}
</svg>"""


def _levels(low: float, high: float) -> list[float]:
    """Where the lines across the chart lie: at the ends, and between them."""
    return [low + (high - low) * quarter / 4 for quarter in range(5)] if high > low else [low]


def _level(y: float, loss: float) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _MARGIN}" y1="{y}" y2="{y}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{loss:.3g}</text>'
    )


def _legend(place: int, colour: str, words: str) -> str:
    x = _WIDTH / 2 - 140 + 170 * place
    return (
        f'<rect x="{x}" y="{_HEIGHT - 13}" width="12" height="3" fill="var(--{colour})"/>'
        f'<text x="{x + 18}" y="{_HEIGHT - 6}">{words}</text>'
    )
