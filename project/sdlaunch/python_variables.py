"""Variables that change how Python itself works, and with which the libraries of a run fail."""

from __future__ import annotations

from collections.abc import Mapping

# Name → why a process of the job does not get it; "": its output is UTF-8 anyway.
_HARMFUL = {
    "PYTHONIOENCODING": "",
    "PYTHONOPTIMIZE": "libraries need their docstrings and assertions",
    "PYTHONINSPECT": "a process could not end",
}
_WARNINGS = "PYTHONWARNINGS"


def harmful(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are set and that a process must not inherit, each with the reason."""
    found = {name: why for name, why in _HARMFUL.items() if environ.get(name)}
    if any(part.strip().startswith("error") for part in environ.get(_WARNINGS, "").split(",")):
        found[_WARNINGS] = "libraries warn of their own old code, and would end with it"
    return found


def without_harmful(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process of Python."""
    left_out = harmful(environ)
    return {name: value for name, value in environ.items() if name not in left_out}


def warnings(environ: Mapping[str, str]) -> list[str]:
    """What to say about those that may be set on purpose."""
    return [
        f"{name}={environ[name]} is not passed on to the processes: {why}"
        for name, why in harmful(environ).items()
        if why
    ]
