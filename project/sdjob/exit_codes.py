"""Exit codes of the launcher and of a worker, each with its meaning: a row of MEANINGS."""

from __future__ import annotations

import signal
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
    refused: bool = False  # the job does not start; of several such codes, the first in MEANINGS is the job's
    final: bool = False  # the next start would end in the same way, so that other nodes need not wait for it


MEANINGS = {
    ExitCode.FINISHED: Meaning("finished", "finished", ""),
    ExitCode.BAD_SETTING: Meaning("bad setting", "a setting is wrong", refused=True, final=True),
    ExitCode.BAD_INPUT: Meaning(
        "bad input", "a mount, the model or the data is wrong", refused=True, final=True
    ),
    ExitCode.NO_HARDWARE: Meaning(
        "hardware does not fit",
        "the hardware or software does not fit",
        "elsewhere",
        refused=True,
        final=True,
    ),
    ExitCode.TRAINING_FAILED: Meaning("training failed", "training failed: see `failure.json`", "maybe"),
    ExitCode.OUT_OF_MEMORY: Meaning(
        "out of memory", "out of memory, on the device or the host", "with the printed remedy", final=True
    ),
    ExitCode.OUTPUT_FULL: Meaning(
        "output cannot hold the result",
        "`/output` cannot hold the result, or another job is using it",
        refused=True,
        final=True,
    ),
    ExitCode.STOPPED: Meaning("stopped", "stopped by an external signal and resumable", "yes, it resumes"),
}

# What help and documents list: also the launcher's code after a repeated Ctrl-C, which is that of a shell.
LISTED = {
    **{int(code): meaning for code, meaning in MEANINGS.items()},
    128 + signal.SIGINT: Meaning(
        "interrupted", "stopped at once by a repeated Ctrl-C (SIGINT)", "yes, from the last checkpoint"
    ),
}

REFUSED = tuple(code for code, meaning in MEANINGS.items() if meaning.refused)


def meaning_of(code: int) -> Meaning:
    """The meaning of any code: an unknown one is a failed training."""
    known = code in ExitCode.__members__.values()
    return MEANINGS[ExitCode(code) if known else ExitCode.TRAINING_FAILED]
