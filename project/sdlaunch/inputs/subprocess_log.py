"""Programs that fetch something from outside: shown line by line as they go, without secrets."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Mapping, Sequence

from sdlaunch.display.redact import redact

_TAIL = 30


def run(argv: Sequence[str], environ: Mapping[str, str], secrets: tuple[str, ...]) -> tuple[int, str]:
    """(exit status, what it said of its errors, else its last line) of a program; it ends with the launcher."""
    tail: deque[str] = deque(maxlen=_TAIL)
    process = subprocess.Popen(
        argv,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if shown := redact(line.rstrip(), secrets):
                print(f"  {shown}", flush=True)
                tail.append(shown)
        errors = [line for line in tail if line.startswith("ERROR")] or list(tail)[-1:]
        return process.wait(), " / ".join(errors)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
