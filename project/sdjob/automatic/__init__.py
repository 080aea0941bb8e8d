"""What a setting `auto` becomes, and why: a pure module for each such setting, for the plan and for the worker.

Start reading: any of them, such as weights_dtype.py; machine.py has the facts about the machine that both ask for.
May import: sdjob.settings, sdjob.problems, sdjob.formatting.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The value that `auto` stands for, and the reason in a few words that follow its name."""

    value: str
    reason: str
