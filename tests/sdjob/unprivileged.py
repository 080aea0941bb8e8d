"""Run a function as an ordinary user, because root may read everything."""

import concurrent.futures.thread  # noqa: F401 - before the privileges go: Python's own files may be private to root
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.PngImagePlugin  # noqa: F401

from sdjob.problems import JobError

NOBODY = 65534


def problems_as_user(action: Callable[[], object], folder: Path) -> dict[str, str]:
    """Subject → what was found, of the JobError that the action raises; the way to `folder` is opened.

    Done again if the way was closed meanwhile: pytest does so with its folders whenever another session starts.
    """
    way = list(_way_to(folder))
    while True:
        for parent in way:
            parent.chmod(0o755)
        answer = _in_a_child(action)
        if all(parent.stat().st_mode & 0o055 == 0o055 for parent in way):
            return answer


def _way_to(folder: Path) -> Iterator[Path]:
    for parent in folder.parents:
        if parent == Path(tempfile.gettempdir()) or parent.stat().st_uid != os.getuid():
            return
        yield parent


def _in_a_child(action: Callable[[], object]) -> dict[str, str]:
    """A forked child, not a new interpreter: the checkout and its Python may be private to root."""
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
