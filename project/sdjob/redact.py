"""Keeping secrets out of everything that is shown or written: plans, logs, records, failures.

What is hidden: values of variables and flags whose names say that they are secrets, wherever these values occur;
logins and signatures in URLs; `name=value` and `--name value` of such names; and tokens that are known by their form.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

HIDDEN = "[redacted]"
_SECRET = (
    r"token(?!iz)|secret|passw|passphrase|credential|bearer|jwt|cookie|webhook"
    r"|(?:api|access|private|secret|account|shared|encryption|signing|license)[_-]?keys?(?![a-z])|connection_?string"
)
_SECRET_NAME = re.compile(
    rf"{_SECRET}|signature|(?<!by)pass(_|$)|_pwd(_|$)|authorization"
    r"|(^|_)(auth|keys?|pat|dsn|sas|sig|otp|salt)(_|$)",
    re.IGNORECASE,
)
# Tokens of a text, not of a login: max_new_tokens, placeholder_token, token_length.
_NO_SECRET_NAME = re.compile(
    r"(^|_)(max|min|num|n|pad|bos|eos|unk|cls|sep|mask|special|placeholder|initializer|class|keep)_(\w+_)?tokens?(_|$)"
    r"|^tokens(_|$)|tokens?_(ids?|len(gth)?|count|type|abstraction|per|warmup|separator)(_|$)",
    re.IGNORECASE,
)
_NAME = rf"[\w.-]{{0,40}}(?:{_SECRET})[\w.-]{{0,40}}"  # bounded: lines may be long
# user:password@, or a token alone; a password may hold a slash, unless what precedes it is a port.
# Of a URL that was taken for a path one slash is left.
_URL_LOGIN = re.compile(
    r"(:/{1,2})(?:(?<=//)[^/\s:@]{1,256}(?=@)|[^/\s:@]{1,256}:(?!\d+/)[^\s@]{0,256}(?=@))"
)
_URL_QUERY = re.compile(r"([?&]([\w.%-]{1,64})=)([^&#\s\"'<>]+)")
_ASSIGNED = re.compile(
    rf"(?<![\w.-])((?:--?)?({_NAME})(?:[\"']?\s*=\s*|[\"']\s*:\s*)[\"']?)([^\s\"',;)}}\]]+)", re.IGNORECASE
)
_FLAG = re.compile(r"(?<![\w.-])(--?([a-zA-Z][\w.-]{0,80})(?:[\"']?,?\s+|=)[\"']?)([^\s\"'-][^\s\"']*)")
_KNOWN_FORMS = re.compile(
    r"(?<![\w-])(?:hf_\w{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)"
    r"|(?<=bearer )[\w.~+/=-]{8,}|(?<=authorization: basic )[\w+/=]{4,}",
    re.IGNORECASE,
)
_SHORTEST = 6  # characters; to redact a shorter value everywhere would also hide ordinary words


def is_secret(name: str) -> bool:
    """Whether a variable, flag or query parameter of this name holds a secret."""
    name = name.strip("-").replace("-", "_")
    return _SECRET_NAME.search(name) is not None and _NO_SECRET_NAME.search(name) is None


def secrets_of(environ: Mapping[str, str], words: Sequence[str] = ()) -> tuple[str, ...]:
    """The strings to redact, longest first: secret values and their lines, as JSON, YAML and shells spell them.

    `words`: a command line, of which the values of secret flags are taken.
    """
    values = [value for name, value in environ.items() if is_secret(name)]
    values += [
        word[start:] for word, start in zip(words, _secret_starts(words), strict=True) if start is not None
    ]
    lines = [line for value in values for line in (value, *value.splitlines())]
    spellings = {spelling for line in lines for spelling in _spellings(line.strip())}
    return tuple(sorted((s for s in spellings if len(s) >= _SHORTEST), key=lambda s: (-len(s), s)))


def without_secrets(words: Sequence[str]) -> tuple[str, ...]:
    """A command line with the values of secret flags hidden, however short: `--token X`, `--token=X`, `token=X`."""
    pairs = zip(words, _secret_starts(words), strict=True)
    return tuple(word if start is None else word[:start] + HIDDEN for word, start in pairs)


def without_secrets_in(line: str) -> str:
    """The same for a command line that is not split yet."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote, so that a secret may go on to the end
        words = line.split()
        secret = next((i for i, start in enumerate(_secret_starts(words)) if start is not None), len(words))
        return line if secret == len(words) else " ".join((*words[:secret], HIDDEN))
    hidden = without_secrets(words)
    return line if hidden == tuple(words) else shlex.join(hidden)


def _secret_starts(words: Sequence[str]) -> Iterable[int | None]:
    """For each word of a command line the position from which on it is secret."""
    is_value = False
    for word in words:
        name, equals, value = word.partition("=")
        is_flag = word.startswith("-")
        if equals and value and is_secret(name):
            yield len(name) + 1
        else:
            yield 0 if is_value and not is_flag else None
        is_value = is_flag and not equals and is_secret(name)


def _spellings(text: str) -> tuple[str, ...]:
    in_json = (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return text, *in_json, shlex.quote(text)[1:-1] if "'" in text else text, text.replace("'", "''")


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """The text without these values, and without what looks like a secret."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    if ":/" in text:
        text = _URL_LOGIN.sub(rf"\1{HIDDEN}", text)
        text = _URL_QUERY.sub(_hide, text)
    for pattern in (_ASSIGNED, _FLAG):
        text = pattern.sub(_hide, text)
    return _KNOWN_FORMS.sub(HIDDEN, text)


def _hide(match: re.Match[str]) -> str:
    """`match`: what precedes a value, the name in it, the value."""
    before, name, value = match.groups()
    return before + HIDDEN if is_secret(name) and not value.startswith(HIDDEN[:-1]) else match[0]
