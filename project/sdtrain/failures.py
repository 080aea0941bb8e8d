"""Exceptions that mean something a person can mend: too little memory, no room to write."""

from __future__ import annotations

import errno

from sdjob.problem import ExitCode, Problem, hardware, output_problem

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_REFUSED = (errno.EIO, errno.EACCES, errno.EPERM)


def problem_of(error: Exception) -> Problem | None:
    """The problem behind an exception; None: it is a fault of the program."""
    return _out_of_memory(error) or _no_room(error) or _no_package(error)


def _no_package(error: Exception) -> Problem | None:
    if not isinstance(error, ModuleNotFoundError) or not error.name or error.name.startswith("sd"):
        return None
    package = error.name.split(".")[0]
    return hardware("Python", f"the package {package} is not installed", f"Install it: pip install {package}")


def is_write_failure(error: Exception) -> bool:
    """Whether an exception raised while writing comes from the file system."""
    if isinstance(error, OSError):
        return error.errno in (*_FULL, *_REFUSED)
    # safetensors and torch wrap the operating system's error into their own.
    text = str(error).lower()
    words = ("no space left", "os error 28", "disk quota", "file write failed", "unexpected pos")
    return any(word in text for word in words)


def _no_room(error: Exception) -> Problem | None:
    full = isinstance(error, OSError) and error.errno in _FULL
    if not full and not (type(error).__name__ == "SafetensorError" and is_write_failure(error)):
        return None
    return output_problem(
        "OUTPUT_DIR",
        f"cannot be written ({error})",
        "Make room or lower checkpoints_total_limit; the next start resumes from the last checkpoint.",
    )


def _out_of_memory(error: Exception) -> Problem | None:
    on_device = type(error).__name__ == "OutOfMemoryError"
    on_host = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    if not on_device and not on_host:
        return None
    where = "the device" if on_device else "the host"
    return Problem(
        int(ExitCode.OUT_OF_MEMORY),
        "memory",
        f"{where} has too little for this run ({str(error).splitlines()[0]})",
        "Lower batch_size and raise gradient_accumulation_steps, set gradient_checkpointing=1, "
        "lower resolution, or train a LoRA (lora_rank=8).",
    )
