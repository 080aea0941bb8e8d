"""Induced death: a job of two ranks ended in each phase by what ends jobs, and then started again.

`python -m tests.end_to_end.induced_death FOLDER [--table FILE] [PHASE …]` runs every cell, or those of some phases,
keeps the outcomes in the folder and writes the table of all that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from sddemo.scenes import Scene, render
from sddemo.tiny_pipeline import make_tiny_pipeline
from sdjob.output.layout import OutputLayout
from sdtrain.architectures import ARCHITECTURES
from sdtrain.export import export
from sdtrain.reporting import metrics
from tests.sdlaunch.workspace import clean_environment
from tests.support import forked, loopback
from tests.support.breakpoints import PATIENCE, POLL, Breakpoint, Place
from tests.support.launcher import ENTRYPOINT, Launched
from tests.support.volume import CALLS, FAULTS, Volume, fail_calls, pass_calls, preload

SETTINGS = {
    "recipe": "dreambooth",
    "with_prior_preservation": "1",
    "class_prompt": "a cross",
    "num_class_images": "4",
    "sample_batch_size": "1",
    "allow_pickle": "1",
    "cache_latents": "disk",
    "center_crop": "1",
    "cache_text_embeddings": "disk",
    "resolution": "32",
    "NPROC_PER_NODE": "2",
    "device": "cpu",
    "lr": "1e-4",
    "dataloader_num_workers": "0",
    "num_train_step": "4",
    "checkpointing_steps": "2",
    "logging_steps": "1",
    "use_ema": "1",
    "validation_prompts": '["a cross", "a disc"]',
    "num_validation_images": "2",
    "num_inference_steps": "1",
    "validation_steps": "2",
}
SAFE, PICKLE = "model.safetensors", "model.ckpt"
LAUNCHER, TORCHRUN, RANK, PEER = (
    "launcher",
    "torchrun",
    "rank",
    "other rank",
)  # a rank in the phase, and one that waits
REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CAUSES = tuple(
    f"{number.name} to {target}"
    for target, signals in {
        LAUNCHER: (*REQUESTS, signal.SIGKILL),
        TORCHRUN: (*REQUESTS, signal.SIGKILL),
        RANK: (*REQUESTS, signal.SIGKILL),
        PEER: (signal.SIGKILL,),
    }.items()
    for number in signals
)
CUT = "network cut"
HANG_TIMEOUT = 20.0  # seconds, for that cause alone: the others wait for it longer than a cell takes
FINISHED = "already finished"


@dataclass(frozen=True)
class Phase:
    """A phase of a run, and whether only the launcher is alive in it."""

    name: str
    place: Place
    alone: bool = False
    model: str = SAFE

    def causes(self) -> list[str]:
        """What can end a job in it: signals to a process, and faults of its output folder."""
        signals = [cause for cause in CAUSES if not self.alone or cause.endswith(LAUNCHER)]
        faults = [
            fault for fault in (*FAULTS, *CALLS) if self.name != "preflight" or fault != "removed"
        ]  # nothing is there yet
        return [*signals, *faults, *([] if self.alone else [CUT])]


PHASES = (
    Phase("preflight", Place("sdlaunch.preflight.checks:run"), alone=True),
    Phase("start of the ranks", Place("sdtrain.__main__:_train")),
    Phase("conversion of model.safetensors", Place("sdtrain.model.convert:_converted", 2)),
    Phase("conversion of model.ckpt", Place("sdtrain.model.convert:_converted", 2), model=PICKLE),
    Phase("conversion of a table", Place("sdjob.dataset.formats.parquet:in_child")),
    Phase("loading", Place("sdtrain.model.load:_class_of", 2)),
    Phase("class images", Place("sdtrain.recipes.class_images:generate", 2)),
    Phase("caching of encoded prompts", Place("sdtrain.data.cache:_store_next")),
    Phase("caching of latents", Place("sdtrain.data.cached_encodings:_posteriors")),
    Phase("validation before training", Place("sdtrain.model.generation:generate", 2)),
    Phase("first step", Place("sdtrain.loop:noised")),
    Phase("first checkpoint", Place("sdtrain.checkpoint.checkpoint:write_manifest")),
    Phase("validation", Place("sdtrain.model.generation:generate", 4)),
    Phase("training", Place("sdtrain.loop:noised", 3)),
    Phase("last checkpoint", Place("sdtrain.checkpoint.checkpoint:write_manifest", 2)),
    Phase("export", Place("sdtrain.export.export:sync_tree")),
    Phase("export, put in place", Place("sdtrain.export.export:_put_in_place")),
    Phase("validation after training", Place("sdtrain.model.generation:generate", 6)),
    Phase("report", Place("sdtrain.reporting.report:write")),
    Phase("verdict", Place("sdlaunch.supervise.verdict:judge"), alone=True),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a job, and of its next start."""

    code: int
    failure: str  # the class in failure.json, or on the terminal where that cannot be written; empty: none
    seconds: float  # until no process of the job was alive
    unseen: int  # optimizer steps after the launcher had ended
    again: int  # exit code of the next start
    begins: str  # where that began, as it says
    same: bool  # whether weights, losses and last images are those of an undisturbed run

    def faults(self, cause: str, phase: Phase) -> list[str]:
        """What is not as it should be."""
        finished = self.begins.startswith(FINISHED)
        checks = {
            f"exit code {self.code}, {self.failure or 'no failure'}": self._is_expected(
                cause, phase, finished
            ),
            f"alive for {self.seconds:.0f} s": self.seconds < 20 + (HANG_TIMEOUT if cause == CUT else 0),
            f"{self.unseen} steps unseen": self.unseen <= 2,  # the one under way, and the next: see StopVote
            f"next start: {self.again}, {self.begins}": self.again == 0,
            "another result": self.same or self.again != 0,
        }
        return [text for text, is_right in checks.items() if not is_right]

    def _is_expected(self, cause: str, phase: Phase, finished: bool) -> bool:
        if cause in FAULTS or cause in CALLS:
            no_output = self.code == 73 and self.failure == "output cannot hold the result"
            return no_output or (phase.name == "verdict" and self.code == 0)  # the result was complete
        if cause == CUT:
            return (self.code == 70 and self.failure == "hang") or (self.code == 0 and finished)
        if cause == f"SIGKILL to {LAUNCHER}":
            return self.code == -signal.SIGKILL
        if self.code == 70:
            return cause.startswith("SIGKILL") and self.failure == "killed from outside"
        return not self.failure and (self.code == 75 or (self.code == 0 and finished))

    def __str__(self) -> str:
        step = self.begins.rpartition("checkpoint-")[2]
        begins = (
            f"step {int(step)}" if step.isdigit() else "end" if self.begins.startswith(FINISHED) else "start"
        )
        return f"{self.code}, {self.seconds:.1f} s, {begins}"


def make_inputs(folder: Path) -> Path:
    """A model in one file of either kind, and a table of images."""
    folder.mkdir(parents=True)
    pipeline = make_tiny_pipeline(folder / "pipeline", "epsilon")
    export._write_single_file(pipeline, ARCHITECTURES["StableDiffusionPipeline"], "tiny")
    weights = shutil.move(pipeline / export.WEBUI_MODEL, folder / SAFE)
    torch.save({"state_dict": load_file(weights)}, folder / PICKLE)
    images = []
    for number, x in enumerate((28.0, 32.0, 36.0)):
        render(Scene("cross", "orange", "grey", x=x)).save(file := folder / f"{number}.png")
        images.append({"bytes": file.read_bytes(), "path": file.name})
        file.unlink()
    (folder / "dataset").mkdir()
    pq.write_table(pa.table({"image": images}), folder / "dataset" / "images.parquet")
    return folder


class Job:
    """A forked job, whose processes are recognised by their working directory."""

    def __init__(
        self,
        inputs: Path,
        folder: Path,
        model: str,
        root: Path,
        at: Place | None = None,
        cause: str = "",
    ) -> None:
        """`root`: of its output and its caches; `at`: where it waits for its cause to end."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.output = folder, root / "output"
        self._breakpoint = Breakpoint(folder / "breakpoint") if at else None
        environ = clean_environment(
            MODEL_DIR=str(inputs / model),
            single_file_config=str(inputs / "pipeline"),
            DATASET_DIR=str(inputs / "dataset"),
            OUTPUT_DIR=str(self.output),
            cache_dir=str(root / "cache"),
            **SETTINGS,
            **({"hang_timeout": f"{HANG_TIMEOUT:g}"} if cause == CUT else {}),
        )

        def before() -> None:
            if cause == CUT:
                loopback.isolate()
            if self._breakpoint and at:
                self._breakpoint.set(at)

        become = forked.launcher(environ, before)
        self.launched = Launched(ENTRYPOINT, self.output, environ, preexec_fn=become, cwd=folder)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[int]:
        """While the body runs, the job waits in the phase; gives the process id that has arrived there."""
        assert self._breakpoint
        try:
            yield self._breakpoint.wait(lambda: self.launched.process.poll() is None)
        finally:
            self._breakpoint.release()

    def processes(self) -> list[psutil.Process]:
        """All that are alive."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.folder):
                    found.append(process)
        return found

    def find(self, target: str, arrived: int) -> psutil.Process:
        """The process of a target."""
        launcher = psutil.Process(self.launched.process.pid)
        if target == LAUNCHER:
            return launcher
        _wait(lambda: len(launcher.children()) == 1, "alone")  # its reader of files ends without work
        (torchrun,) = launcher.children()
        if target == TORCHRUN:
            return torchrun
        _wait(lambda: len(torchrun.children()) == int(SETTINGS["NPROC_PER_NODE"]), "all started")
        return next(rank for rank in torchrun.children() if (rank.pid == arrived) == (target == RANK))

    def end(self) -> str:
        """Wait until the launcher has ended; returns what it has said."""
        return self.launched.process.communicate(timeout=2 * PATIENCE)[0]

    def kill(self) -> None:
        """End what is left of it."""
        for process in self.processes():
            process.kill()

    def steps(self) -> int:
        """The last step in the log of metrics."""
        return max((each.step for each in metrics.read(OutputLayout(self.output).metrics)), default=0)

    def result(self) -> dict[str, str]:
        """Weights and last images by the hashes of their files, and the losses of all steps."""
        logged = metrics.read(OutputLayout(self.output).metrics)
        files = [
            *self.output.glob("checkpoint/[!c]*/*.safetensors"),
            *self.output.glob("samples/step-000004/*.png"),
        ]
        hashes = {
            path.relative_to(self.output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }
        return {**hashes, "losses": str([(each.step, each.loss) for each in logged if each.loss is not None])}


def undisturbed(inputs: Path, folder: Path) -> dict[str, str]:
    """The result of a job that nothing happens to."""
    job = Job(inputs, folder, SAFE, folder)
    job.launched.end(0)
    return job.result()


def die(inputs: Path, folder: Path, phase: Phase, cause: str, wanted: Mapping[str, str]) -> Outcome:
    """One cell of the table."""
    shutil.rmtree(folder, ignore_errors=True)
    if cause in CALLS:
        output = folder.resolve() / "output"
        return _outcome(
            inputs, folder, phase, wanted, folder, lambda *_: fail_calls(CALLS[cause], output), pass_calls
        )
    if cause == CUT:
        return _outcome(inputs, folder, phase, wanted, folder, lambda _, pid: loopback.cut(pid), cause=cause)
    if cause not in FAULTS:
        return _outcome(inputs, folder, phase, wanted, folder, lambda job, pid: _signal(job, pid, cause))
    volume = Volume(folder / "volume")
    try:
        return _outcome(
            inputs, folder, phase, wanted, volume.root, lambda *_: FAULTS[cause](volume), volume.repair
        )
    finally:
        volume.unmount()


def _outcome(
    inputs: Path,
    folder: Path,
    phase: Phase,
    wanted: Mapping[str, str],
    root: Path,
    disturb: Callable[[Job, int], None],
    repair: Callable[[], None] = lambda: None,
    cause: str = "",
) -> Outcome:
    job = Job(inputs, folder, phase.model, root, phase.place, cause)
    try:
        with job.waiting() as arrived:
            begun = time.monotonic()
            disturb(job, arrived)
        text = job.end()
        steps = _steps(job)
        _wait(lambda: not job.processes(), "ended")
        seconds = time.monotonic() - begun
    finally:
        job.kill()
    unseen, failure = _steps(job) - steps, _failure(job, text)
    repair()
    second = Job(inputs, folder, phase.model, root)
    said = second.end()
    code = second.launched.process.returncode
    begins = (line for line in said.splitlines() if line.startswith(("resuming", "starting", FINISHED)))
    same = code == 0 and second.result() == wanted
    return Outcome(
        job.launched.process.returncode, failure, seconds, unseen, code, next(begins, said[-500:]), same
    )


def _signal(job: Job, arrived: int, cause: str) -> None:
    name, _, target = cause.partition(" to ")
    victim, number = job.find(target, arrived), signal.Signals[name]
    victim.send_signal(number)
    _wait(lambda: _is_delivered(victim.pid, number), "delivered")


def _steps(job: Job) -> int:
    with contextlib.suppress(OSError):
        return job.steps()
    return 0


def _failure(job: Job, text: str) -> str:
    with contextlib.suppress(OSError):
        return str(json.loads((job.output / "failure.json").read_text())["class"])
    _, found, rest = text.partition('"class": "')
    refused = "output cannot hold the result" if "OUTPUT_DIR: " in text and "exit code 73" in text else ""
    return rest.partition('"')[0] if found else refused  # a job that is refused shows its problems


def _wait(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"not {what} within {PATIENCE:g} s"
        time.sleep(POLL)


def _is_delivered(pid: int, number: int) -> bool:
    """Whether a signal is no longer pending, or the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return status["State"][0] == "Z" or (number != signal.SIGKILL and not pending >> (number - 1) & 1)


# --- the table -----------------------------------------------------------------------------------------------

_INTRODUCTION = """\
# What a job survives

A job of two ranks (DreamBooth with class images, a model in one file, images in a table, caches on disk, EMA,
validation) is ended in each phase: by a signal to one of its processes, or by a fault of its output folder. Then it is
started again and left alone. Every cell has the exit code of the first start, the seconds until none of its processes
was alive, and where the next start began: at the start, at a step, or at the end, since everything was done.

Each of these next starts ended with 0 and with the weights, losses and images of an undisturbed run, to the byte. After
its launcher had ended, no job made more than the step that was under way and, where steps take less than a second, the
next, in which the ranks read each other's answers. **Bold**: a cell where this is not so.

Exit codes: {codes}. −9 is the launcher's own death, which nobody can report.
torchrun ignores SIGUSR1: a scheduler sends it to all processes, and the launcher's is the one that counts.
Quota and ESTALE: calls that change files of the folder fail so, since no file system of one machine does it to root.
Network cut: no packet passes between the ranks from then on, and `hang_timeout` is {patience:g} s, which count.

{count} of {total} cells were measured, {green} are as they should be; {machine}. `make survival` writes this page.
"""


def table(outcomes: Mapping[tuple[str, str], Outcome]) -> str:
    """The page with these outcomes, by phase and cause."""
    green = sum(not outcome.faults(cause, _phase(name)) for (name, cause), outcome in outcomes.items())
    machine = f"{date.today()}, Python {platform.python_version()}, torch {version('torch')}, {os.cpu_count()} cores"
    total = sum(len(phase.causes()) for phase in PHASES)
    codes = "75 stopped and resumable, 70 failed (killed from outside, or hung), 73 the output folder fails, 0 finished"
    parts = [
        _INTRODUCTION.format(
            codes=codes, patience=HANG_TIMEOUT, count=len(outcomes), total=total, green=green, machine=machine
        )
    ]
    for title, causes in {
        **_of_targets(),
        "a fault of the output folder": (*FAULTS, *CALLS),
        "a network without packets": (CUT,),
    }.items():
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{_rows(causes, outcomes)}\n")
    return "\n".join(parts)


def _of_targets() -> dict[str, tuple[str, ...]]:
    titles = {
        LAUNCHER: "the launcher",
        TORCHRUN: "torchrun",
        RANK: "the rank in the phase",
        PEER: "the other rank",
    }
    return {
        f"a signal to {title}": tuple(cause for cause in CAUSES if cause.partition(" to ")[2] == target)
        for target, title in titles.items()
    }


def _rows(causes: tuple[str, ...], outcomes: Mapping[tuple[str, str], Outcome]) -> str:
    lines = [
        f"| phase | {' | '.join(cause.partition(' to ')[0] for cause in causes)} |",
        "|---" * (len(causes) + 1) + "|",
    ]
    for phase in PHASES:
        cells = [_cell(outcomes.get((phase.name, cause)), cause, phase) for cause in causes]
        if any(cells):
            lines.append(f"| {phase.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(outcome: Outcome | None, cause: str, phase: Phase) -> str:
    if outcome is None:
        return ""
    faults = outcome.faults(cause, phase)
    return f"**{outcome}: {'; '.join(faults)}**" if faults else str(outcome)


def _phase(name: str) -> Phase:
    return next(phase for phase in PHASES if phase.name == name)


def main() -> int:
    """Returns 1 if any cell is not as it should be, or a job missed its phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("phases", nargs="*", help="only these; all without")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--causes", nargs="+", help="only these; all without")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    preload(given.folder)
    inputs, log = given.folder / "inputs", given.folder / "outcomes.jsonl"
    red = 0
    if not inputs.exists():
        make_inputs(inputs)
    for phase in PHASES:
        if given.phases and phase.name not in given.phases:
            continue
        shutil.rmtree(given.folder / phase.name, ignore_errors=True)
        wanted = undisturbed(inputs, given.folder / phase.name / "undisturbed")
        for cause in phase.causes():
            if given.causes and cause not in given.causes:
                continue
            try:
                outcome = die(inputs, given.folder / phase.name / cause, phase, cause, wanted)
            except AssertionError as error:  # it did not reach its phase, or did not end
                print(f"{phase.name}, {cause}: {error}", flush=True)
                red += 1
                continue
            faults = outcome.faults(cause, phase)
            red += bool(faults)
            print(f"{phase.name}, {cause}: {outcome} {faults or ''}", flush=True)
            with log.open("a") as file:
                file.write(json.dumps([phase.name, cause, asdict(outcome)]) + "\n")
    if given.table:
        rows = (json.loads(line) for line in log.read_text().splitlines())
        given.table.write_text(table({(name, cause): Outcome(**values) for name, cause, values in rows}))
    return 1 if red else 0


if __name__ == "__main__":
    raise SystemExit(main())
