"""`bash train.sh generate MODEL --prompts "a dog" "a cat" --output FOLDER`: from words to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sdjob.exit_codes import ExitCode
from sdjob.problems import JobError, Problem
from sdtrain.generate import options
from sdtrain.generate.options import Options
from sdtrain.generate.sources import Source, sources_of
from sdtrain.runtime import errors, garbage


def main(arguments: Sequence[str]) -> int:
    """Write the images that a command line asks for; returns its exit code."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        asked = options.parse(arguments)
        sources, prompts = _inputs(asked)

        with garbage.ignored_until_imported("torch"):
            from sdtrain.generate import images  # it takes seconds, which a mistake should not cost

        images.write(asked, sources, prompts)
    except SystemExit:  # argparse has printed the help
        return int(ExitCode.FINISHED)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return errors.reported(error)
    return int(ExitCode.FINISHED)


def _inputs(asked: Options) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """The models and the prompts. Raises JobError with everything that is wrong with both (64, 66)."""
    problems: list[Problem] = []
    sources: tuple[Source, ...] = ()
    prompts: tuple[str, ...] = ()
    try:
        sources = sources_of(asked)
    except JobError as error:
        problems += error.problems
    try:
        prompts = asked.every_prompt()
    except JobError as error:
        problems += error.problems
    if problems:
        raise JobError(problems)
    return sources, prompts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
