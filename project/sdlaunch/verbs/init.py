"""`init`: an env file with proposed settings, from four answers and a look at the mounts.

The answers are flags (`model=`, `data=`, `learn=`, `length=`); in a terminal those that are missing are asked for. What
is written has passed the checks of `plan`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sdjob import writing
from sdjob.dataset.detect import dataset_in
from sdjob.exit_codes import ExitCode
from sdjob.failure_patterns import DEVICE_MEMORY, HOST_MEMORY
from sdjob.files import few, list_folder
from sdjob.formatting import as_typed, visible
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError, bad_output, bad_setting
from sdlaunch import plan
from sdlaunch.display import text as display
from sdlaunch.inputs import mounts as mount_paths
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.plan import JobPlan
from sdlaunch.settings import settings
from sdlaunch.settings.settings import Settings
from sdlaunch.verbs import help as settings_help

FILE = "job.env"
CAPTIONS = "captions"
LENGTHS = {  # of a run of steps, of a run of epochs
    "quick": ("200", "5"),
    "normal": ("400", "20"),
    "long": ("1000", "100"),
}
_STEPS = re.compile(r"0*[1-9]\d*", re.ASCII)
_EPOCHS = re.compile(r"([1-9]\d{0,5}) epochs?")

_LEARN = (
    "What is learnt? The prompt of one subject with a rare word as its name, such as: a photo of sks dog; "
    f"or {CAPTIONS}: what the captions say"
)
_LENGTH = f"How long? {', '.join(LENGTHS)}, a number of steps, or N epochs"

Chosen = dict[str, str]  # settings as they are typed


@dataclass(frozen=True)
class Question:
    """What a terminal asks. An empty answer is `default`."""

    name: str
    text: str
    default: str


@dataclass(frozen=True)
class Proposal:
    """The env file, before it is written."""

    path: Path
    text: str
    job: JobPlan  # of these settings
    because: tuple[str, ...]  # lines about what was found and chosen


def prepare(
    arguments: Mapping[str, str],
    flags: Sequence[tuple[str, str]],
    environ: Mapping[str, str],
    home: Path,
    ask: Callable[[Question], str] | None,
) -> Proposal:
    """Raises JobError with everything that is wrong (64, 66, 69, 73). `ask`: None outside of a terminal."""
    path = Path(arguments.get("to") or FILE).expanduser().absolute()
    if path.exists() or path.is_symlink():
        raise JobError(
            bad_output("to", f"{path} exists", "Name another file with to=FILE, or remove this one.")
        )
    read = settings.read(flags, environ)
    if read.problems:
        raise JobError(read.problems)
    mounts = mount_paths.resolve(read.options, home)
    chosen: Chosen = {
        name: as_typed(each.text) for name, each in read.given.items() if "command" in each.where
    }

    def answer(name: str, text: Callable[[], str], default: str) -> str:
        return arguments.get(name) or (ask(Question(name, text(), default)) if ask else "") or default

    for name, setting, offer in (
        ("model", "model_name", partial(_offer_model, mounts)),
        ("data", "dataset_name", partial(_offer_data, mounts, read)),
    ):
        if given := answer(name, offer, chosen.get(setting, "")):
            chosen[setting] = given
    captioned = _is_captioned(chosen, environ, home)
    recipe = chosen.get("recipe", "text_to_image" if captioned else "")
    subject = chosen.get("instance_prompt", "a photo of sks dog")
    learn = answer("learn", lambda: _LEARN, CAPTIONS if recipe == "text_to_image" else subject)
    proposed = _to_learn(learn)
    if "length" in arguments or not {"num_train_step", "epoch"} & chosen.keys():
        proposed |= _of_length(answer("length", lambda: _LENGTH, "normal"), learn)
    if side := _side(mounts, chosen):
        proposed["resolution"] = str(side)
    chosen |= {name: value for name, value in proposed.items() if name not in chosen}
    job, more = _fitting(chosen, environ, home)
    if job.problems:
        raise JobError(job.problems)
    because = []
    if not (captioned or ask or "learn" in arguments):
        because.append("learn: one subject, since the images have no captions")
    if more:
        because.append(f"{' '.join(f'{name}={value}' for name, value in more.items())}: to fit the memory")
    return Proposal(path, _text({**chosen, **more}, path), job, tuple(because))


def run(proposal: Proposal) -> str:
    """Write the file; returns what to tell the user. Raises JobError (73)."""
    try:
        writing.write_text(proposal.path, proposal.text)
    except OSError as error:
        remedy = "Name a file in a folder that can be written, with to=FILE."
        raise JobError(
            bad_output("to", f"{proposal.path} cannot be written ({error.strerror})", remedy)
        ) from None
    lines = [*display.inputs(proposal.job), *proposal.because, *proposal.job.arithmetic]
    lines += [f"wrote {proposal.path}", f"  see what it does: bash train.sh plan ENV_FILE={proposal.path}"]
    return visible("\n".join([*lines, f"  start it:         bash train.sh ENV_FILE={proposal.path}"]))


def in_terminal(question: Question) -> str:
    """Ask on standard error, where no program reads."""
    default = f" [{question.default}]" if question.default else ""
    print(visible(f"{question.text}{default}\n> "), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _offer_model(mounts: Mounts) -> str:
    def only() -> Path:
        return find_pipeline(mounts.model, None, allow_pickle=False).path

    return f"Which model? A name below MODEL_DIR={mounts.model}, or a path; {_offer(mounts.model, only)}"


def _offer_data(mounts: Mounts, read: Settings) -> str:
    def only() -> Path:
        return dataset_in(mounts.dataset, read.spec, captions=False).path

    return f"Which data? A name below DATASET_DIR={mounts.dataset}, or a path; {_offer(mounts.dataset, only)}"


def _offer(root: Path, only: Callable[[], Path]) -> str:
    """What an empty answer means, else what there is."""
    try:
        return f"empty: {only()}"
    except JobError:
        pass
    try:
        listing = list_folder(root)
    except OSError:
        return "there are: none"
    return f"there are: {few((*listing.folders, *listing.files), 12) or 'none'}"


def _to_learn(learn: str) -> Chosen:
    if learn == CAPTIONS:
        return {"recipe": "text_to_image"}
    return {"recipe": "dreambooth", "instance_prompt": learn, "validation_prompts": learn}


def _of_length(length: str, learn: str) -> Chosen:
    """Raises JobError (64)."""
    steps, epochs = LENGTHS.get(length, ("", ""))
    if steps:
        return {"epoch": epochs} if learn == CAPTIONS else {"num_train_step": steps}
    if match := _EPOCHS.fullmatch(length.strip()):
        return {"epoch": match[1]}
    if _STEPS.fullmatch(length):
        return {"num_train_step": length}
    remedy = (
        f"Write {', '.join(LENGTHS)}, a number of steps such as 800, or epochs such as length='10 epochs'."
    )
    raise JobError(bad_setting("length", f"found {length!r}", remedy))


def _side(mounts: Mounts, chosen: Chosen) -> int | None:
    """The side of the images that the model was made for; None: not known, and then the checks say why."""
    try:
        return find_pipeline(mounts.model, chosen.get("model_name"), allow_pickle=False).native_resolution
    except JobError:
        return None


def _is_captioned(chosen: Chosen, environ: Mapping[str, str], home: Path) -> bool:
    """Whether a run on captions finds its data."""
    job = plan.prepare([*{**chosen, "recipe": "text_to_image"}.items()], environ, home)
    return not any(problem.code == ExitCode.BAD_INPUT for problem in job.problems)


def _fitting(chosen: Chosen, environ: Mapping[str, str], home: Path) -> tuple[JobPlan, Chosen]:
    """The job, with the mildest of the settings by which it fits the memory, if it does not without."""
    job = plan.prepare([*chosen.items()], environ, home)
    is_short = any(problem.subject in (DEVICE_MEMORY, HOST_MEMORY) for problem in job.problems)
    if is_short or any(warning.startswith("memory: ") for warning in job.warnings):
        for words in job.lighter():
            more = dict(word.partition("=")[::2] for word in words.split())
            return plan.prepare([*{**chosen, **more}.items()], environ, home), more
    return job, {}


def _text(chosen: Chosen, path: Path) -> str:
    """One NAME=value a line, each with its help. Raises JobError (64) for what no such line can hold."""
    broken = [name for name, value in chosen.items() if len(value.splitlines()) > 1]
    if broken:
        remedy = "Write it in one line: an env file has one NAME=value in each."
        raise JobError([bad_setting(name, "has several lines", remedy) for name in broken])
    head = f"# Settings of a job, proposed by `bash train.sh init`.\n#   bash train.sh ENV_FILE={path}"
    lines = "\n".join(f"{name}={value}" for name, value in chosen.items())
    return settings_help.with_comments(f"{head}\n\n{lines}\n")
