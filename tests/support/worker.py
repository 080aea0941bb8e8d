"""Run the worker from a test: in this process, in several forked ones, or under torchrun."""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "project"

# Small and quick; each test sets the values that it is about.
DEFAULTS = {
    "recipe": "text_to_image",
    "resolution": 32,
    "max_train_steps": 3,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "device": "cpu",
    "seed": 7,
    "num_inference_steps": 2,
}


def flags(**settings) -> list[str]:
    """Settings as the flags of `python -m sdtrain`; None leaves one out."""
    argv = []
    for name, value in {**DEFAULTS, **settings}.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                argv.append(f"--{name}={str(item).lower() if isinstance(item, bool) else item}")
    return argv


def in_process(**settings) -> int:
    """Run in this process; returns the exit code."""
    from sdtrain.__main__ import main

    return main(flags(**settings))


def in_ranks(size: int, before: Callable[[], None] | None = None, **settings) -> list[int]:
    """Run in `size` forked processes, which need no imports; each calls `before` first. Returns the exit codes."""
    with forked(size, before, **settings) as processes:
        for process in processes:
            process.join(120)
        return [process.exitcode if process.exitcode is not None else -1 for process in processes]


@contextlib.contextmanager
def forked(
    size: int, before: Callable[[], None] | None = None, **settings
) -> Iterator[list[multiprocessing.Process]]:
    """The ranks of a run as forked processes, all ended when the block ends."""
    # Process groups of an earlier run in this process end here: in a fork their destructors would wait for threads
    # that only this process has.
    gc.collect()
    context = multiprocessing.get_context("fork")
    port = free_port()
    processes = [context.Process(target=_rank, args=(r, size, port, before, settings)) for r in range(size)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(rank: int, size: int, port: int, before: Callable[[], None] | None, settings: dict) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")
    if before:
        before()
    code = in_process(**settings)
    sys.stdout.flush()
    os._exit(code)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """Environment of a separate worker: the checkout's packages, one thread, no variables of a surrounding job."""
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ},
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


@contextlib.contextmanager
def started(*argv: str, **environ: str) -> Iterator[subprocess.Popen]:
    """A process in a separate session, ended with its children when the block ends."""
    with subprocess.Popen(
        [sys.executable, *argv],
        env=environment(**environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def torchrun(size: int, **settings) -> contextlib.AbstractContextManager[subprocess.Popen]:
    """The worker under a real torchrun."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m", "sdtrain")
    return started(*launcher, *flags(**settings))


def scalars(output: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value, as TensorBoard shows them; each step once."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"), size_guidance={SCALARS: 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, values in found.items():
        steps = [event.step for event in values]
        assert len(set(steps)) == len(steps), f"{tag} has a step twice: {steps}"
    return {tag: {event.step: event.value for event in values} for tag, values in found.items()}


def losses(output: Path) -> list[float]:
    """The logged losses in the order of their steps, which must be all steps from 1 on."""
    found = scalars(output)["train/loss"]
    assert sorted(found) == list(range(1, len(found) + 1))
    return [found[step] for step in sorted(found)]


def assert_same_weights(found: dict, wanted: dict, way: float) -> None:
    """The weights of two runs agree to rounding: on average to 0.1 % of `way`, steps × lr.

    AdamW moves a weight by about lr per step whatever the size of its gradient, so where a gradient is
    nearly zero rounding alone decides the direction: single weights may differ by much more.
    """
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert (found[name] - weight).abs().mean().item() <= 1e-3 * way, name


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def alone():
    """The world of a single process on the CPU."""
    import torch

    from sdtrain.runtime.devices import DEVICE_TYPES
    from sdtrain.runtime.distributed import World

    return World(0, 0, 1, DEVICE_TYPES["cpu"], torch.device("cpu"))


def context_of(layout=None, *, stop=False, first_step=0, **settings):
    """The context of a run in this process whose settings are the defaults but for these."""
    from sdjob.output.layout import OutputLayout
    from sdjob.settings.run_spec import RunSpec
    from sdtrain.context import RunContext

    layout = layout or OutputLayout(Path("-"))
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir=str(layout.root), **settings)
    return RunContext(spec, alone(), layout, stop, first_step)


class Killed(BaseException):
    """Raised where a test lets a run die: the worker catches only Exception, so this acts like a kill."""
