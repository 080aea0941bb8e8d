"""Rows for the documents: exit codes and failures, and what the flags of other trainers become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdjob import failure_patterns
from sdjob.exit_codes import LISTED
from sdjob.settings.diffusers_flags import UNSUPPORTED, Unsupported
from sdjob.settings.fields import setting_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.convert import env_file
from sdlaunch.convert.kohya_flags import KOHYA_UNSUPPORTED
from sdlaunch.convert.lines import Line
from sdlaunch.convert.simpletuner import SIMPLETUNER
from sdlaunch.convert.translate import lines_of
from sdlaunch.documents.translations import HOME, into
from sdlaunch.settings.other_trainers import KOHYA
from sdlaunch.verbs import convert

COMMANDS = HOME / "docs" / "tutorials" / "commands"
_RENAMED = {"kohya": KOHYA, "SimpleTuner": SIMPLETUNER}
_UNSUPPORTED: Mapping[str, Mapping[str, Unsupported]] = {"diffusers": UNSUPPORTED, "kohya": KOHYA_UNSUPPORTED}


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown; cells may hold bars."""
    heads = list(heads)
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    rule = "|---" * len(heads) + "|"
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {line} |" for line in lines), ""])


def exit_codes(language: str = "") -> str:
    translate = into(language)
    rows = [
        [f"{code}", translate(meaning.text), translate(meaning.retry)] for code, meaning in LISTED.items()
    ]
    return table(map(translate, ("code", "meaning", "start again?")), rows)


def failures(language: str = "") -> str:
    """What a running job may meet, as sdjob/failure_patterns.py recognizes it: the text as it is printed."""
    translate = into(language)
    rows = []
    for each in failure_patterns.PATTERNS:
        cause = f"`{each.subject}: {each.cause}`"
        if language:
            cause += f"<br>{translate(each.cause)}"
        rows.append([f"{each.code}", cause, translate(each.remedy)])
    return table(map(translate, ("code", "cause", "remedy")), rows)


def renamed(language: str, trainer: str) -> str:
    """Names that are other names here."""
    heads = (into(language)("here"), trainer)
    rows = (
        [f"`{ours}`", ", ".join(f"`{name}`" for name in names)] for ours, names in _RENAMED[trainer].items()
    )
    return table(heads, rows)


def aliases(language: str = "") -> str:
    """Settings whose names in the diffusers example scripts are accepted, where they are not our own."""
    rows = []
    for field, info in RunSpec.model_fields.items():
        about = setting_of(info)
        others = [alias.name for alias in about.spellings(field) if alias.name != (about.name or field)]
        if others:
            rows.append([f"`{about.name or field}`", ", ".join(f"`{name}`" for name in others)])
    return table(map(into(language), ("here", "also accepted")), rows)


def unsupported(language: str, trainer: str) -> str:
    """Flags without a counterpart, those with the same remedy in one row."""
    translate = into(language)
    by_remedy: dict[tuple[str, bool], list[str]] = {}
    for name, flag in _UNSUPPORTED[trainer].items():
        by_remedy.setdefault((flag.remedy, flag.keeps_result), []).append(name)
    rows = (
        [", ".join(f"`{name}`" for name in names), translate(remedy), translate("no" if keeps else "yes")]
        for (remedy, keeps), names in by_remedy.items()
    )
    return table(map(translate, ("flag", "instead", "changes the result")), rows)


# --- tutorials -----------------------------------------------------------------------------------------


def original(name: str) -> str:
    return f"```sh\n{(COMMANDS / f'{name}.sh').read_text(encoding='utf-8').strip()}\n```\n"


def converted(name: str) -> tuple[Line, ...]:
    """What `convert` makes of it."""
    path = COMMANDS / f"{name}.sh"
    return env_file.settle(lines_of(convert.source_of(str(path), ())))


def env(name: str) -> str:
    """The settings that follow, as an env file without comments."""
    lines = env_file.in_order(line for line in converted(name) if line.name)
    return "```ini\n" + "\n".join(f"{line.name}={line.value}" for line in lines) + "\n```\n"


def flags(language: str, name: str) -> str:
    """The original's flags on the left, what becomes of each on the right."""
    translate = into(language)
    cells: dict[str, list[str]] = {}
    for line in sorted(converted(name), key=lambda line: line.name == "offline"):  # of model and dataset
        for origin in line.origin.split(", --"):  # one setting of several flags
            origin = (
                origin if origin.startswith("--") or " " in origin or origin == line.origin else f"--{origin}"
            )
            texts = [f"`{line.name}={line.value}`"] if line.name else []
            cells.setdefault(origin, []).extend([*texts, *([translate(line.remark)] if line.remark else [])])
    rows = ([_origin(origin, language), "<br>".join(dict.fromkeys(texts))] for origin, texts in cells.items())
    return table(map(translate, ("original", "here")), rows)


def _origin(origin: str, language: str) -> str:
    """A flag as code; a default in words."""
    if origin.startswith("default of "):
        return f"{into(language)('default of')} `{origin.removeprefix('default of ')}`"
    if origin.startswith("--") or origin.endswith(".py") or " = " in origin:
        return f"`{origin}`"
    return into(language)(origin)
