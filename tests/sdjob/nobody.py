"""Doing something as an ordinary user, because root may read everything."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from sdjob.problem import JobError

NOBODY = 65534


def problems_as_nobody(action: Callable[[], object], folder: Path) -> dict[str, str]:
    """Subject → what was found, of the JobError that the action raises; the way to `folder` is opened.

    A forked child, not a new interpreter: the checkout and its Python may be private to root.
    """
    for parent in folder.parents:
        if parent == Path(tempfile.gettempdir()) or parent.stat().st_uid != os.getuid():
            break
        parent.chmod(0o755)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, _run(action))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.wait()
    return json.loads(answer)


def _run(action: Callable[[], object]) -> bytes:
    try:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        action()
        result = {}
    except JobError as error:
        result = {problem.subject: problem.found for problem in error.problems}
    except BaseException as error:
        result = {"unexpected": repr(error)}
    return json.dumps(result).encode()
