"""Texts of the tables in Chinese, from docs/zh-CN.yaml: English → Chinese. What is not translated stays English."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from sdjob import reading

HOME = Path(__file__).resolve().parents[3]
Translate = Callable[[str], str]


@functools.cache
def chinese() -> Mapping[str, str]:
    import yaml

    text = (HOME / "docs" / "zh-CN.yaml").read_text(encoding="utf-8")
    texts: dict[str, str] = reading.yaml_of(text, yaml.SafeLoader)
    return texts


def into(language: str) -> Translate:
    """The translation of texts: " zh" into Chinese, "" leaves them."""
    if language.strip() != "zh":
        return str
    texts = chinese()
    return lambda text: texts.get(text, text)
