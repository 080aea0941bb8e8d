"""report.html: the report as a page, with the loss curve and the pictures, in one file without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top }
td:first-child { color: #777 } img { max-width: 100%; image-rendering: pixelated } svg { width: 100%; height: auto }
"""
_WIDTH, _HEIGHT, _MARGIN = 800, 220, 40


def losses(tensorboard: Path) -> list[tuple[int, float]]:
    """(step, loss) of the whole run, earlier parts of a resumed one included, from the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tensorboard), size_guidance={"scalars": 2000})
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def render(report: dict[str, Any], curve: Sequence[tuple[int, float]], grid: str | None) -> str:
    """The page; `grid` is the path of the before/after picture, relative to the page."""
    rows = "\n".join(
        f"<tr><td>{escape(key)}</td><td>{escape(_shown(value))}</td></tr>" for key, value in report.items()
    )
    picture = f'<h2>Before and after</h2><p><img src="{escape(grid)}" alt="samples"></p>' if grid else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Training report</title><style>{_STYLE}</style>
<h1>{escape(str(report["recipe"]))}: {report["steps"]} steps</h1>
{picture}
<h2>Loss</h2>
{_svg(curve)}
<h2>Figures</h2>
<table>
{rows}
</table>
</html>
"""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else "–" if value is None else str(value)


def _svg(curve: Sequence[tuple[int, float]]) -> str:
    """The losses as dots and their running mean as a line: single losses of diffusion say little."""
    if len(curve) < 2:
        return "<p>Too few logged steps for a curve.</p>"
    smooth = _running_mean([loss for _, loss in curve])
    first, last = curve[0][0], curve[-1][0]
    low, high = min(loss for _, loss in curve), max(loss for _, loss in curve)

    def place(step: int, loss: float) -> tuple[float, float]:
        x = _MARGIN + (step - first) / max(1, last - first) * (_WIDTH - 2 * _MARGIN)
        y = _MARGIN + (high - loss) / ((high - low) or 1) * (_HEIGHT - 2 * _MARGIN)
        return round(x, 1), round(y, 1)

    dots = "".join('<circle cx="{}" cy="{}" r="1.5" fill="#bbb"/>'.format(*place(*point)) for point in curve)
    steps = [step for step, _ in curve]
    line = " ".join("{},{}".format(*place(step, loss)) for step, loss in zip(steps, smooth, strict=True))
    return f"""<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="11" fill="#777">
{dots}<polyline points="{line}" fill="none" stroke="#06c" stroke-width="1.5"/>
<text x="2" y="{_MARGIN}">{high:.4g}</text><text x="2" y="{_HEIGHT - _MARGIN}">{low:.4g}</text>
<text x="{_MARGIN}" y="{_HEIGHT - 12}">step {first}</text>
<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 12}" text-anchor="end">step {last}</text>
</svg>"""


def _running_mean(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """An exponential mean without the bias of its first values."""
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        means.append(mean / weight)
    return means
