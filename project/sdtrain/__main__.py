"""`python -m sdtrain`: joins the process group, trains, and turns every ending into its exit code."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from sdjob import rank_output
from sdjob.exit_codes import ExitCode
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError
from sdjob.settings import flags
from sdjob.settings.choices import TRACKERS
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdtrain.runtime import compile_caches, errors, exit_note, garbage, heartbeat, stop, store_port
from sdtrain.runtime.parents import Parents
from sdtrain.runtime.stop import Stopped


def main(arguments: list[str]) -> int:
    """One process of a run, from its flags to its exit code."""
    rank_output.attach()
    if (code := exit_note.reason_not_to_retry()) is not None:
        return code
    parents = Parents.of_this()
    output = None
    try:
        with heartbeat.announced():
            spec = flags.parse(arguments)
            output = Path(spec.output_dir)
            _train(spec, parents)
    except Stopped as stopped:
        # With a note 0 suffices: torchrun would take another code for a failure and signal the other ranks.
        noted = exit_note.leave(ExitCode.STOPPED, step=stopped.step)
        return int(ExitCode.FINISHED if noted else ExitCode.STOPPED)
    except JobError as error:
        if not exit_note.leave(error.code, problems=error.problems):
            print(error, file=sys.stderr, flush=True)
        return error.code
    except Exception as error:
        problem = errors.problem_of(error, output)
        code = problem.code if problem else ExitCode.TRAINING_FAILED
        text = "".join(traceback.format_exception(error))
        exit_note.leave(code, problems=[problem] if problem else [], error=repr(error), traceback=text)
        print(problem or text, file=sys.stderr, flush=True)
        return int(code)
    return int(ExitCode.FINISHED)


def _train(spec: RunSpec, parents: Parents | None) -> None:
    """Import what takes seconds, now that the settings are valid, and train."""
    # These libraries' advice is meant for their direct users; preflight checks what matters.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if reason := compile_caches.use(spec, OutputLayout(Path(spec.output_dir)), os.environ):
        print(f"compiled code is not kept for the next start: {reason}", flush=True)
    listener = store_port.reserved()
    with heartbeat.working("import"), garbage.ignored_until_imported("torch"):
        import torch

        from sdtrain.run import run
        from sdtrain.runtime.distributed import join

    with (
        stop.watch(parents=parents) as request,
        join(
            spec.device,
            group_of_one=PLUGINS[spec.plugin].shards,
            waiting=request.at_once(),
            listener=listener,
        ) as world,
    ):
        torch.backends.cuda.matmul.allow_tf32 = spec.allow_tf32
        torch.backends.cudnn.allow_tf32 = spec.allow_tf32
        torch.backends.cudnn.benchmark = not spec.aspect_ratio_buckets  # tries algorithms once for each shape
        if world.any(bool(request)):  # during the imports
            raise Stopped(0)
        run(spec, world, request)


def _leave(code: int) -> NoReturn:
    """End the process. Exit handlers of a tracker whose thread is not done would wait for its server without end."""
    if any(thread.name in TRACKERS for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
