"""report.html: the report as a page with loss curves and images, in one file without scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from html import escape
from typing import Any

from sdjob.settings.recipes import RECIPES
from sdtrain.reporting.labels import visible
from sdtrain.reporting.metrics import VALIDATION, RunningMean, StepMetrics

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
_MAX_POINTS = 2000  # in a curve


@dataclass(frozen=True)
class Sheet:
    """An image of many: its path, relative to the page, and what its prompts are in full, which it shortens or replaces
    where its font lacks their letters."""

    path: str
    prompts: Sequence[str]


def render(
    report: dict[str, Any], metrics: Sequence[StepMetrics], grid: Sheet | None, inputs: Sheet | None
) -> str:
    """The page, with the images before and after training, and with the first training images."""
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _tiles(report))
    rows = "\n".join(
        f"<tr><td>{escape(key)}</td><td>{escape(visible(_as_text(value)))}</td></tr>"
        for key, value in report.items()
    )
    samples = _images("Before and after", "samples", grid) if grid else ""
    trained_on = _images("First training images", "training images", inputs) if inputs else ""
    title = escape(_title(report))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>
<h1>{title}</h1>
<p class="about">{escape(_summary(report))}</p>
<dl>{tiles}</dl>
{samples}
<h2>Loss</h2>
{_chart(metrics)}
{trained_on}
<details><summary>All values</summary>
<table>
{rows}
</table></details>
</html>
"""


def _images(title: str, description: str, sheet: Sheet) -> str:
    items = "".join(f"<li>{escape(visible(prompt))}</li>" for prompt in sheet.prompts)
    image = f'<img src="{escape(sheet.path)}" alt="{description}">'
    return f'<h2>{title}</h2><p>{image}</p><ol class="about" start="0">{items}</ol>'


def _title(report: dict[str, Any]) -> str:
    recipe = RECIPES[report["recipe"]].title
    lora = f", LoRA of rank {report['lora_rank']}" if report["lora_rank"] else ""
    return f"{recipe}{lora}: {report['steps']:,} steps"


def _summary(report: dict[str, Any]) -> str:
    """Model, data, hardware and date in one sentence."""
    when = report["finished"][:16].replace("T", " ")
    return (
        f"{report['pretrained_model_name_or_path']}, {report['num_examples']:,} images at "
        f"{report['resolution']} pixels, {report['global_batch_size']} per step; {report['world_size']} × "
        f"{report['device_name']}, {report['plugin']}, precision {report['precision']}; finished {when} UTC"
    )


def _tiles(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of what people look for first; what was not measured is left out."""
    if rate := report["images_per_second"]:
        yield "images per second", f"{rate:.3g}"
    time = timedelta(seconds=round(report["seconds"]))
    yield "time of all starts" if report["resumed_from_step"] else "time", str(time)
    yield "device hours", f"{report['device_hours']:.3g}"
    if peak := report["peak_memory_bytes"]:
        yield "peak memory per process", f"{peak / 1e9:.3g} GB"
    for key, name in {"mean_loss": "mean loss", **VALIDATION}.items():
        if report[key] is not None:
            yield name, f"{report[key]:.4g}"


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else "–" if value is None else str(value)


@dataclass(frozen=True)
class _Axes:
    """Maps steps and losses to pixels."""

    first: int
    last: int
    low: float
    high: float

    def x(self, step: int) -> float:
        span = max(1, self.last - self.first)
        return round(_LEFT + (step - self.first) / span * (_WIDTH - _LEFT - _MARGIN), 1)

    def y(self, loss: float) -> float:
        span = (self.high - self.low) or 1
        return round(_MARGIN + (self.high - loss) / span * (_HEIGHT - 2 * _MARGIN), 1)

    def line(self, points: Points, color: str) -> str:
        path = " ".join(f"{self.x(step)},{self.y(loss)}" for step, loss in points)
        return f'<polyline points="{path}" fill="none" stroke="var(--{color})" stroke-width="1.5"/>'

    def dots(self, points: Points) -> str:
        return "".join(f'<circle cx="{self.x(step)}" cy="{self.y(loss)}" r="1.5"/>' for step, loss in points)

    def grid(self) -> str:
        """Five labelled lines across the chart, or one where all losses are equal."""
        span = self.high - self.low
        levels = [self.low + span * quarter / 4 for quarter in range(5)] if span else [self.low]
        return "".join(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _MARGIN}" y1="{y}" y2="{y}" stroke="var(--line)"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{loss:.3g}</text>'
            for loss in levels
            for y in [self.y(loss)]
        )


def _chart(metrics: Sequence[StepMetrics]) -> str:
    """Training losses as dots with their running mean as a line, since single losses of diffusion vary widely; the
    held-out losses, at fixed timesteps, as a line."""
    training = [(each.step, each.loss) for each in metrics if each.loss is not None]
    held_out = [(each.step, each.validation_loss) for each in metrics if each.validation_loss is not None]
    if len(training) < 2:
        return "<p>Too few logged steps for a curve.</p>"
    running = RunningMean()
    mean = [(step, running.add(loss)) for step, loss in training]
    steps, losses = zip(*training, *held_out, strict=True)
    axes = _Axes(min(steps), max(steps), min(losses), max(losses))
    legend = [_legend(0, "train", "training, running mean")]
    if held_out:
        legend.append(_legend(1, "held-out", "held-out images"))
    return f"""<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="11">
{axes.grid()}<g fill="var(--train)" opacity=".35">{axes.dots(_thinned(training))}</g>
{axes.line(_thinned(mean), "train")}{axes.line(_thinned(held_out), "held-out")}
<text x="{_LEFT}" y="{_HEIGHT - 6}">step {axes.first}</text>
<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 6}" text-anchor="end">step {axes.last}</text>{"".join(legend)}
</svg>"""


def _thinned(points: Points) -> Points:
    """At most `_MAX_POINTS`, evenly spaced."""
    return points[:: math.ceil(len(points) / _MAX_POINTS) or 1]


def _legend(index: int, color: str, text: str) -> str:
    x = _WIDTH / 2 - 140 + 170 * index
    return (
        f'<rect x="{x}" y="{_HEIGHT - 13}" width="12" height="3" fill="var(--{color})"/>'
        f'<text x="{x + 18}" y="{_HEIGHT - 6}">{text}</text>'
    )
