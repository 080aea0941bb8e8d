"""Exit codes of the launcher and of a worker, and what each means."""

from __future__ import annotations

from dataclasses import dataclass
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
        "`/output` cannot hold the result, or another job is using it",
    ),
    ExitCode.STOPPED: Meaning("stopped", "stopped by an external signal and resumable", "yes, it resumes"),
}


def meaning_of(code: int) -> Meaning:
    """The meaning of any code: an unknown one is a failed training."""
    known = code in ExitCode.__members__.values()
    return MEANINGS[ExitCode(code) if known else ExitCode.TRAINING_FAILED]


# Codes of jobs that are refused: the same start would be refused again. In the order of their precedence.
REFUSED = (ExitCode.BAD_SETTING, ExitCode.BAD_INPUT, ExitCode.NO_HARDWARE, ExitCode.OUTPUT_FULL)
