"""Every name that users can type, what it sets, and what a misspelled one probably meant."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from pydantic import BaseModel

from sdjob.settings.fields import Alias, settings_of
from sdjob.settings.recipes import RECIPES
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster.platforms import PLATFORMS
from sdlaunch.settings import other_trainers
from sdlaunch.settings.options import LaunchOptions

# Variables of libraries and systems, which are not misspelled settings: prefixes, and whole names. Those of the
# platforms that state nodes are in cluster/platforms.py.
_FOREIGN_PREFIXES = """
DLC_ PAI_ KUBERNETES_ NVIDIA_ CUDA CUDNN_ NCCL_ GLOO_ UCX_ ROCM_ HIP_ MIOPEN_ MUSA_ TOPS_ ECCL_ OMP_ MKL_ KMP_
OPENBLAS_ TF_ TORCH PYTORCH_ XLA_ TRITON_ HF_ HUGGINGFACE_ TRANSFORMERS_ DIFFUSERS_ ACCELERATE_ TOKENIZERS_ WANDB_
AWS_ AZURE_ GOOGLE_ GCP_ ALIBABA_ PYTHON PIP_ UV_ CONDA_ VIRTUAL_ENV LC_ LD_ XDG_ SSH_ GIT_ DBUS_ SDJOB_
"""
_FOREIGN_NAMES = """
PATH HOME USER LOGNAME SHELL LANG LANGUAGE TERM HOSTNAME PWD OLDPWD TMPDIR DEBIAN_FRONTEND
RANK LOCAL_RANK GROUP_RANK ROLE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE
NODE_ADDR HOST_NODE_ADDR RANK_ID RANK_SIZE
MASTER_HOST MASTER_IP NODE_NAME POD_NAME JOB_NAME MODEL_ID DATASET_ID PROJECT_ID
"""

# Flags of the worker that follow from the mounts. In an environment these names mean something else.
_MOUNT_OF = {
    "output_dir": "OUTPUT_DIR",
    **{facts.data_setting: "DATASET_DIR" for facts in RECIPES.values()},
}


@dataclass(frozen=True)
class Target:
    """What a name sets: a field of one of the two models."""

    model: type[BaseModel]
    field: str
    shown: str  # its name in the plan
    alias: Alias


@cache
def catalogue() -> dict[str, Target]:
    """Every accepted name → what it sets. Flags of the worker that are never read are left out."""
    return {
        alias.name: Target(model, field, about.name or field, alias)
        for model in (LaunchOptions, RunSpec)
        for field, about in settings_of(model).items()
        if not about.flag_only
        for alias in _spellings(model, field)
    }


def _spellings(model: type[BaseModel], field: str) -> list[Alias]:
    """Every accepted name of a field, the shown one first. Upper-case settings have no lower-case name."""
    about = settings_of(model)[field]
    shown = about.name or field
    return [
        alias
        for alias in about.spellings(field)
        if alias.name == shown or shown.islower() or alias.name != field
    ]


def other_names(model: type[BaseModel], field: str) -> list[str]:
    """The names of a field besides the shown one."""
    return [alias.name for alias in _spellings(model, field)[1:]]


def lookup(name: str, *, any_case: bool = False) -> Target | None:
    """The target of a name: lower-case names in any case, upper-case ones exactly unless `any_case`."""
    known = catalogue()
    return known.get(name) or known.get(name.lower()) or (known.get(name.upper()) if any_case else None)


def shown_name(name: str) -> str:
    """The name that the plan shows for a flag; unchanged where it is not known."""
    target = lookup(name, any_case=True)
    return target.shown if target else name


def is_foreign(name: str) -> bool:
    """Whether a variable belongs to a platform or a library."""
    return name in _FOREIGN_NAMES.split() or name.startswith(_foreign_prefixes())


@cache
def _foreign_prefixes() -> tuple[str, ...]:
    platforms = [prefix for platform in PLATFORMS.values() for prefix in platform.prefixes]
    return (*_FOREIGN_PREFIXES.split(), *platforms)


def mount_of(name: str) -> str | None:
    """The mount that users set instead of a flag of the worker, such as output_dir; None: not such a flag."""
    return _MOUNT_OF.get(name.lower())


def near_miss(name: str) -> str | None:
    """The known name that this unknown one probably meant: another trainer's, or one edit away, two if long."""
    typed = name.lower().replace("-", "_")
    if meant := other_trainers.probably().get(typed):
        return meant
    if len(typed) < 5:
        return None
    edits = 1 if len(typed) < 9 else 2
    known = {
        lower: shown
        for shown in catalogue()
        # Cheap bounds first: the environment of a pod has hundreds of names.
        if abs(len(lower := shown.lower()) - len(typed)) <= edits and len({*lower} ^ {*typed}) <= 2 * edits
    }
    closest = get_close_matches(typed, known, n=1, cutoff=1 - edits / len(typed))
    return known[closest[0]] if closest else None
