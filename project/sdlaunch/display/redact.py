"""Keeping secrets out of plans, logs and records."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"token(?!izer)|secret|passw|credential|connection_?string|api_?key|access_?key|private_?key"
    r"|(?<!by)pass(_|$)|_pwd(_|$)|(^|_)(keys?|pat|dsn)(_|$)",
    re.IGNORECASE,
)
# user:password@, or a token alone; a password may hold a slash, unless what precedes it is a port.
_URL_LOGIN = re.compile(r"(://)[^/\s:@]+(?::(?!\d+/)[^\s@]*)?(?=@)")
_SHORTEST = 6  # characters; to redact a shorter value would also hide ordinary words


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def secrets_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The strings to redact, longest first: secret values and their lines, as JSON, YAML and shells spell them."""
    values = [value for name, value in environ.items() if is_secret(name)]
    lines = [line for value in values for line in (value, *value.splitlines())]
    spellings = {spelling for line in lines for spelling in _spellings(line.strip())}
    return tuple(sorted((s for s in spellings if len(s) >= _SHORTEST), key=lambda s: (-len(s), s)))


def _spellings(text: str) -> tuple[str, ...]:
    in_json = (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return text, *in_json, shlex.quote(text)[1:-1] if "'" in text else text, text.replace("'", "''")


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
