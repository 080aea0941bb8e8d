"""Prompts as text in images and pages."""

from __future__ import annotations

from PIL import ImageDraw


def label(pen: ImageDraw.ImageDraw, text: str, substitute: str, width: int) -> str:
    """A text, cut to `width` pixels; the substitute where Pillow's built-in font lacks its letters."""
    text = visible(text) if all(ord(letter) < 256 for letter in text) else substitute
    if len(text) <= width and pen.textlength(text) <= width:
        return text
    text = text[:width]  # a letter has a pixel at least
    while text and pen.textlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def visible(text: str) -> str:
    """A text in one line, with control characters as escapes."""
    text = text.replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
