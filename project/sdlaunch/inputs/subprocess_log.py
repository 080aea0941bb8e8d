"""Programs that download: their output is shown line by line as it comes, without secrets."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Mapping, Sequence

from sdlaunch.display.redact import redact

_TAIL = 30


def run(argv: Sequence[str], environ: Mapping[str, str], secrets: tuple[str, ...]) -> tuple[int, str]:
    """(exit status, its lines of errors or else its last line) of a program, which ends with the launcher."""
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
