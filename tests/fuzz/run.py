"""`make fuzz`: new contents of every file that is read of others, for FUZZ_SECONDS (120).

`python -m tests.fuzz.run WORD …` tries the files alone whose paths hold one of the words. Each case that ends otherwise
than documented is kept in tests/fuzz/corpus, which `make test` runs: it stays there when its cause is removed.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz import mutations, targets

CORPUS = Path(__file__).with_name("corpus")
SLOWEST = timedelta(seconds=30)
_MEMORY = 1 << 30  # bytes beyond what this process has before it starts
_AT_ONCE = 40


def search(
    target: targets.Target, run: Callable[[bytes], None], count: int, number: int, until: float = float("inf")
) -> tuple[bytes, BaseException] | None:
    """Try so many contents; the smallest that fails, and how."""
    failed: list[bytes] = []

    @settings(max_examples=count, deadline=SLOWEST, database=None, suppress_health_check=list(HealthCheck))
    @seed(number)
    @given(mutations.contents(target.contents))
    def test(content: bytes) -> None:
        if time.monotonic() > until:
            return
        try:
            run(content)
        except BaseException:
            failed.append(content)
            raise

    try:
        test()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or not failed:
            raise
        return min(failed, key=len), error
    return None


def main(words: list[str]) -> int:
    seconds = float(os.environ.get("FUZZ_SECONDS") or 120)
    first = int(os.environ.get("FUZZ_SEED") or random.randrange(1 << 30))
    print(f"for {seconds:g} s, FUZZ_SEED={first}", flush=True)
    until, failed, rounds = time.monotonic() + seconds, set[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        workspace, every = targets.prepare(Path(folder))
        every = [target for target in every if not words or any(word in target.path for word in words)]
        limit = psutil.Process().memory_info().vms + _MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        while time.monotonic() < until:
            for target in every:
                if target.name in failed or time.monotonic() > until:
                    continue
                run = lambda content, of=target: of.run(Path(folder), workspace, content)  # noqa: E731
                found = search(target, run, _AT_ONCE, first + rounds, until)
                if found:
                    failed.add(target.name)
                    _keep(target, *found)
            rounds += 1
    print(f"{rounds} rounds of {_AT_ONCE} contents for {len(every)} files; {len(failed)} fail")
    return 1 if failed else 0


def _keep(target: targets.Target, content: bytes, error: BaseException) -> None:
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = CORPUS / f"{target.name}-{digest}"
    path.write_bytes(content)
    print(f"\n{target.path}: {path.relative_to(CORPUS.parents[2])}", flush=True)
    traceback.print_exception(error, limit=-4, file=sys.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
