"""`python -m sdlaunch.generate_docs`: rewrites the tables of the documents and the comments of env/*.env.

All come from the schema; a test fails while what is on disk differs from what this would write.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sdjob.settings import compatibility, presets
from sdjob.settings.plugins import DEVICE_FACTS, PLUGINS
from sdjob.settings.recipes import RECIPES
from sdjob.settings.run_spec import RunSpec
from sdlaunch.documents import tables
from sdlaunch.documents.translations import HOME, into
from sdlaunch.settings import settings
from sdlaunch.verbs import help as settings_help

READMES = ("README.md", "README.zh-CN.md")
_DOCUMENTS = (*READMES, "mount_layout.md", "mount_layout.zh-CN.md")
_PROOF = "tests/sdtrain/strategies/test_strategies.py"


def generated() -> Iterator[tuple[Path, str]]:
    """Every file that is generated in part, and what it should hold."""
    documents = [HOME / name for name in _DOCUMENTS]
    documents += [*sorted((HOME / "docs").glob("*.md")), *sorted((HOME / "docs" / "tutorials").glob("*.md"))]
    for path in documents:
        yield path, with_tables(path.read_text(encoding="utf-8"))
    for preset in sorted((HOME / "env").glob("*.env")):
        yield preset, settings_help.with_comments(preset.read_text(encoding="utf-8"))


def with_tables(text: str) -> str:
    """The text with its tables between `<!-- mark -->` and `<!-- end -->`."""
    for mark, table in _TABLES.items():
        pattern = rf"(<!-- {mark} -->\n).*?<!-- end -->"
        text = re.sub(pattern, functools.partial(_filled, table), text, flags=re.DOTALL)
    return text


def _filled(table: Callable[..., str], match: re.Match[str]) -> str:
    mark, *arguments = match.groups()
    return f"{mark}{table(*(argument or '' for argument in arguments))}<!-- end -->"


def _settings(language: str, group: str) -> str:
    translate = into(language)
    rows = []
    for row in settings_help.rows():
        if row.group == group:
            default = "–" if row.default == "-" else f"`{row.default}`"
            also = ", ".join(f"`{other}`" for other in row.other_names) or "–"
            rows.append([f"`{row.name}`", translate(row.meaning), default, also])
    return tables.table(map(translate, ("name", "meaning", "default", "also accepted")), rows)


def _presets(language: str) -> str:
    translate = into(language)
    shown = settings.shown_names(RunSpec)
    rows = ([f"`{shown[each.field]}`", f"`{each.value:g}`", translate(each.when)] for each in presets.PRESETS)
    return tables.table(map(translate, ("name", "preset", "of runs with")), rows)


def _compatibility(language: str) -> str:
    """Plugin × precision × device, as `sdjob.settings.compatibility` judges them."""
    translate = into(language)
    rows = []
    for plugin, precision in itertools.product(PLUGINS, ("no", "bf16", "fp16")):
        cells = [_works(plugin, precision, device) for device in DEVICE_FACTS]
        if set(cells) != {"–"}:
            proof = f"`{_PROOF}`" if {"tested", "stand-in"} & set(cells) else "–"
            rows.append([f"`{plugin}`", precision, *map(translate, cells), proof])
    return tables.table(("plugin", translate("precision"), *DEVICE_FACTS, translate("tests")), rows)


def _works(plugin: str, precision: str, device: str) -> str:
    """With either recipe, with and without EMA and LoRA, which makes no difference to any plugin."""
    topology = compatibility.Topology(device, 1 if plugin == "none" or device == "mps" else 2, bf16=True)
    for recipe, use_ema, lora_rank in itertools.product(RECIPES, (False, True), (0, 4)):
        spec = RunSpec(
            pretrained_model_name_or_path="-",
            output_dir="-",
            recipe=recipe,
            plugin=plugin,
            mixed_precision=precision,  # type: ignore[arg-type]
            use_ema=use_ema,
            lora_rank=lora_rank,
        )
        if compatibility.problems(spec, topology):
            return "–"
    if PLUGINS[plugin].package and device == "cuda":
        return "stand-in"
    return "tested" if device == "cpu" else "accepted"


# Mark (a pattern) → the table, from what the groups of the mark match.
_TABLES: Mapping[str, Callable[..., str]] = {
    r"presets( zh)?": _presets,
    r"exit codes( zh)?": tables.exit_codes,
    r"settings( zh)?: ([\w ]+)": _settings,
    r"failures( zh)?": tables.failures,
    r"aliases( zh)?": tables.aliases,
    r"names( zh)? of (\w+)": tables.renamed,
    r"unsupported( zh)? of (\w+)": tables.unsupported,
    r"original: ([\w-]+)": tables.original,
    r"env: ([\w-]+)": tables.env,
    r"flags( zh)?: ([\w-]+)": tables.flags,
    r"compatibility( zh)?": _compatibility,
}


if __name__ == "__main__":
    for path, wanted in generated():
        if path.read_text(encoding="utf-8") != wanted:
            path.write_text(wanted, encoding="utf-8")
            print(f"rewritten: {path.relative_to(HOME)}")
