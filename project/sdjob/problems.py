"""Problems of a job, and the exit code that they lead to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sdjob.exit_codes import REFUSED, ExitCode
from sdjob.formatting import visible

# Subjects that are neither settings, variables nor paths: what no single one of them can fix.
NAMED_SUBJECTS = frozenset(
    {
        "command line",
        "device memory",
        "host memory",
        "network",
        "nodes",
        "open files",
        "processes",
        "loss",
        "weights",
        "Python",
        "Python packages",
        "PyTorch",
    }
)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that keeps a job from running: its subject, what was found, how to fix it.

    The subject is the setting, variable or argument that can fix it, else a path, else one of NAMED_SUBJECTS.
    """

    code: int
    subject: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return visible(f"{self.subject}: {self.found}\n    → {self.remedy}")

    def to_dict(self) -> dict[str, str | int]:
        return {key: asdict(self)[key] for key in ("subject", "found", "remedy", "code")}


class JobError(Exception):
    """All problems that end a job; shown without a traceback."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[JobError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # by default an exception is unpickled from its text

    @property
    def code(self) -> int:
        return exit_code(self.problems)


def exit_code(problems: Iterable[Problem]) -> int:
    """The exit code of a job with these problems: the first of REFUSED that occurs, then any other."""
    codes = {problem.code for problem in problems}
    ordered = [int(code) for code in REFUSED if code in codes] + sorted(codes)
    return ordered[0] if ordered else int(ExitCode.FINISHED)


def bad_setting(subject: str, found: str, remedy: str) -> Problem:
    """A wrong setting (64)."""
    return Problem(int(ExitCode.BAD_SETTING), subject, found, remedy)


def bad_input(subject: str, found: str, remedy: str) -> Problem:
    """A wrong mount, model or dataset (66)."""
    return Problem(int(ExitCode.BAD_INPUT), subject, found, _sentence(remedy))


def no_hardware(subject: str, found: str, remedy: str) -> Problem:
    """Missing hardware or software (69)."""
    return Problem(int(ExitCode.NO_HARDWARE), subject, found, remedy)


def bad_output(subject: str, found: str, remedy: str) -> Problem:
    """An output folder that cannot hold the result (73)."""
    return Problem(int(ExitCode.OUTPUT_FULL), subject, found, remedy)


def _sentence(remedy: str) -> str:
    """Add a capital letter, unless the remedy starts with a name, and a full stop."""
    first = remedy.split(" ", 1)[0].rstrip(":,")
    capital = remedy[:1].upper() if first.isalpha() else remedy[:1]
    return capital + remedy[1:] + ("" if remedy.endswith((".", "?", "!")) else ".")
