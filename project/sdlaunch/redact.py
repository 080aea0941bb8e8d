"""Keeping secrets out of plans, logs and records."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"token(?!izer)|secret|passw|credential|api_?key|access_?key|private_?key|(^|_)keys?(_|$)", re.IGNORECASE
)
_URL_LOGIN = re.compile(r"(://)[^/\s:@]+:[^/\s@]+(?=@)")
_SHORTEST = 6  # a shorter value would blot out ordinary words


def is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def secrets_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values to hide wherever they occur, longest first."""
    values = {value for name, value in environ.items() if is_secret(name) and len(value.strip()) >= _SHORTEST}
    return tuple(sorted(values, key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """The text without these values, and without logins in URLs."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _URL_LOGIN.sub(rf"\1{HIDDEN}", text) if "://" in text else text


def redacted_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment that can be written down."""
    secrets = secrets_of(environ)
    return {
        name: HIDDEN if is_secret(name) and value else redact(value, secrets)
        for name, value in sorted(environ.items())
    }
