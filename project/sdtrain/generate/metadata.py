"""What a generated image says of itself: the text `parameters`, by which WebUI fills in its fields again.

The format is that of AUTOMATIC1111's WebUI (modules/infotext_utils.py): the prompt, a line with the negative prompt,
and a line of `Name: value` pairs, in which a value with a comma, a colon or a line end is quoted as in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from PIL.PngImagePlugin import PngInfo

_KEY = "parameters"


def png_info(prompt: str, negative: str, values: Mapping[str, object]) -> PngInfo:
    """The text of one image; `values` are those of the last line, in WebUI's names."""
    pairs = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items())
    lines = [prompt, *([f"Negative prompt: {negative}"] if negative else []), pairs]
    info = PngInfo()
    info.add_text(_KEY, "\n".join(lines))
    return info


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,\n:]", value) else value
