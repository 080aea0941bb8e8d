"""Problems of a job, exit codes and their meaning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the launcher and of a worker; the numbers follow BSD's sysexits.h."""

    FINISHED = 0
    BAD_SETTING = 64
    BAD_INPUT = 66
    NO_HARDWARE = 69
    TRAINING_FAILED = 70
    OUT_OF_MEMORY = 71
    OUTPUT_FULL = 73
    STOPPED = 75


@dataclass(frozen=True)
class Meaning:
    """What an exit code says: its class in failure.json, a line for help and documents, whether to start again."""

    name: str
    text: str
    retry: str = "no"


MEANINGS = {
    ExitCode.FINISHED: Meaning("finished", "finished", ""),
    ExitCode.BAD_SETTING: Meaning("bad setting", "a setting is wrong"),
    ExitCode.BAD_INPUT: Meaning("bad input", "a mount, the model or the data is wrong"),
    ExitCode.NO_HARDWARE: Meaning(
        "hardware does not fit", "the hardware or software does not fit", "elsewhere"
    ),
    ExitCode.TRAINING_FAILED: Meaning("training failed", "training failed: see `failure.json`", "maybe"),
    ExitCode.OUT_OF_MEMORY: Meaning(
        "out of memory", "out of memory, on the device or the host", "with the printed remedy"
    ),
    ExitCode.OUTPUT_FULL: Meaning(
        "output cannot hold the result",
        "`/output` cannot hold the result, or another job is at work in it",
    ),
    ExitCode.STOPPED: Meaning("stopped", "stopped from outside and resumable", "yes, it resumes"),
}


def meaning_of(code: int) -> Meaning:
    """The meaning of any code: an unknown one is a failed training."""
    known = code in ExitCode.__members__.values()
    return MEANINGS[ExitCode(code) if known else ExitCode.TRAINING_FAILED]


# Codes of jobs that are refused: the same start would be refused again. In the order of their precedence.
REFUSED = (ExitCode.BAD_SETTING, ExitCode.BAD_INPUT, ExitCode.NO_HARDWARE, ExitCode.OUTPUT_FULL)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that keeps a job from running: its subject, what was found, how to fix it."""

    code: int
    subject: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}\n    → {self.remedy}"

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
    """The exit code of a job with these problems: the first of 64, 66, 69, 73 that occurs, then any other."""
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
