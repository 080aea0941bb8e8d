"""Writing the page: report.html, which holds its data, and run/report_data.js, which an open page loads again.

A page that is opened as a file may not fetch anything, but it may load a script next to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.writing import write_text

ASSETS = Path(__file__).parent / "assets"


def write(layout: OutputLayout, data: Mapping[str, Any]) -> None:
    """Write both, the page last: it is complete without the other file. Raises OSError."""
    write_data(layout, data)
    write_text(layout.page, render(data))


def write_data(layout: OutputLayout, data: Mapping[str, Any]) -> None:
    """Write what an open page loads again. Raises OSError."""
    layout.make(layout.page_data.parent)
    write_text(layout.page_data, f"sdReport({script_json(data)});\n")


def render(data: Mapping[str, Any]) -> str:
    """The page. Where scripts are forbidden, its title and state are still readable."""
    title = escape(visible(f"{data['title']}: {data['state']}"))
    style = _asset("uPlot.min.css") + _asset("page.css")
    scripts = _asset("uPlot.min.js"), _asset("page.js")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main id="page"><h1>{title}</h1>
<noscript><p>The curves need scripts, which this viewer does not run.</p></noscript></main>
<script id="data" type="application/json">{script_json(data)}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def script_json(value: Any) -> str:
    """JSON that is also a value of JavaScript, in which nothing ends or opens a script or a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
