"""`publish`: upload the result of a run, or what `export` made, on request."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError, Problem, bad_setting
from sdlaunch.display import console
from sdlaunch.inputs import mounts as mount_paths
from sdlaunch.publish import publish
from sdlaunch.settings import settings


def run(
    arguments: Mapping[str, str], flags: Sequence[tuple[str, str]], environ: Mapping[str, str], home: Path
) -> int:
    """Returns 0, 73 (refused) or 75 (it may succeed later). Raises JobError (64, 66, 69)."""
    read = settings.read(flags, environ)
    problems: list[Problem] = list(read.problems)
    layout = OutputLayout(mount_paths.resolve(read.options, home).output)
    folder = Path(arguments.get("from") or layout.checkpoint).expanduser().absolute()
    to = arguments.get("to") or read.options.publish
    if not to:
        remedy = "Write to=hub:USER/NAME, or the address of a folder, such as to=s3://BUCKET/FOLDER."
        raise JobError([*problems, bad_setting("to", "not given", remedy)])
    try:
        upload = publish.upload_of(folder, to, "to")
    except JobError as error:
        raise JobError([*problems, *error.problems]) from None
    if problems:
        raise JobError(problems)
    return publish.run(upload, {**environ, **read.passed_on}, lambda text: console.show(text, sys.stdout))
