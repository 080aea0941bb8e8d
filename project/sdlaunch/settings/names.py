"""Every name that users can type, what it sets, and what a misspelled one probably meant."""

from __future__ import annotations

from collections import defaultdict
from difflib import get_close_matches
from functools import cache

from pydantic import BaseModel

from sdjob.settings.fields import Target, settings_of, targets
from sdjob.settings.recipes import RECIPES
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import other_trainers
from sdlaunch.settings.options import LaunchOptions

# Flags of the worker that follow from the mounts. In an environment these names mean something else.
_MOUNT_OF = {
    "output_dir": "OUTPUT_DIR",
    **{facts.data_setting: "DATASET_DIR" for facts in RECIPES.values()},
}


@cache
def catalogue() -> dict[str, Target]:
    """Every name that is read from an environment → what it sets. Flags of the worker are left out."""
    return {name: target for name, target in _every_name().items() if not target.alias.flag_only}


@cache
def _every_name() -> dict[str, Target]:
    """The names on the command line too. Upper-case settings have no lower-case name."""
    return {
        name: target
        for model in (LaunchOptions, RunSpec)
        for name, target in targets(model).items()
        if not settings_of(model)[target.field].flag_only
        if target.shown.islower() or name != target.field
    }


def other_names(model: type[BaseModel], field: str) -> list[str]:
    """The names of a field in an environment besides the shown one."""
    names = [name for name, target in catalogue().items() if (target.model, target.field) == (model, field)]
    return names[1:]


def lookup(name: str, *, any_case: bool = False) -> Target | None:
    """The target of a name: lower-case names in any case, upper-case ones exactly unless `any_case`.

    `any_case` is for the command line and YAML files, where a name cannot be meant for another program.
    """
    known = _every_name() if any_case else catalogue()
    return known.get(name) or known.get(name.lower()) or (known.get(name.upper()) if any_case else None)


def shown_name(name: str) -> str:
    """The name that the plan shows for a flag; unchanged where it is not known."""
    target = lookup(name, any_case=True)
    return target.shown if target else name


def mount_of(name: str) -> str | None:
    """The mount that users set instead of a flag of the worker, such as output_dir; None: not such a flag."""
    return _MOUNT_OF.get(name.lower())


@cache
def _by_length() -> dict[int, list[tuple[str, frozenset[str], str]]]:
    """Length → the known names in lower case, with their letters and their spelling."""
    found: dict[int, list[tuple[str, frozenset[str], str]]] = defaultdict(list)
    for shown in catalogue():
        found[len(shown)].append((shown.lower(), frozenset(shown.lower()), shown))
    return dict(found)


def near_miss(name: str) -> str | None:
    """The known name that this unknown one probably meant: another trainer's, or one edit away, two if long."""
    typed = name.lower().replace("-", "_")
    if meant := other_trainers.probably().get(typed):
        return meant
    if (target := _every_name().get(typed)) and target.alias.flag_only:
        return target.shown
    if len(typed) < 5:
        return None
    edits = 1 if len(typed) < 9 else 2
    # Cheap bounds first: the environment of a pod has hundreds or thousands of names.
    near = (each for size in range(-edits, edits + 1) for each in _by_length().get(len(typed) + size, ()))
    letters = {*typed}
    known = {lower: shown for lower, of_it, shown in near if len(of_it ^ letters) <= 2 * edits}
    closest = get_close_matches(typed, known, n=1, cutoff=1 - edits / len(typed))
    return known[closest[0]] if closest else None
