"""`python -m sdlaunch.generate_docs`: rewrites the tables of the documents and the comments of env/*.env.

All come from the schema; a test fails while what is on disk differs from what this would write.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from sdjob import protocol
from sdjob.problems import MEANINGS
from sdjob.settings import compatibility, presets
from sdjob.settings.fields import settings_of
from sdjob.settings.plugins import DEVICE_FACTS, PLUGINS
from sdjob.settings.recipes import RECIPES
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import names, other_trainers, resolve
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.verbs.help import default_of, defaults_of

HOME = Path(__file__).resolve().parents[2]


READMES = {
    "README.md": ("here", "kohya's sd-scripts", "examples of diffusers"),
    "README.zh-CN.md": ("本项目", "kohya sd-scripts", "diffusers 示例"),
}


def generated(home: Path = HOME) -> Iterator[tuple[Path, str]]:
    """Every file that is generated in part, and what it should hold."""
    layout = home / "mount_layout.md"
    yield layout, with_tables(layout.read_text(encoding="utf-8"))
    for name, titles in READMES.items():
        readme = home / name
        yield readme, with_other_names(readme.read_text(encoding="utf-8"), titles)
    strategies = home / "docs" / "strategies.md"
    yield strategies, with_compatibility(strategies.read_text(encoding="utf-8"))
    for preset in sorted((home / "env").glob("*.env")):
        yield preset, with_comments(preset.read_text(encoding="utf-8"))


def with_tables(text: str) -> str:
    """The text with the tables of settings, presets and exit codes between their marks."""
    text = _filled(text, "presets", lambda _: _presets())
    text = _filled(text, "exit codes", lambda _: _exit_codes())
    return _filled(text, r"settings: ([\w ]+)", lambda match: _table(match[2]))


def _filled(text: str, mark: str, fill: Callable[[re.Match[str]], str]) -> str:
    """The text with something else between `<!-- mark -->` and `<!-- end -->`."""
    return re.sub(
        rf"(<!-- {mark} -->\n).*?<!-- end -->",
        lambda match: f"{match[1]}{fill(match)}<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def _table(group: str) -> str:
    rows = ["| name | meaning | default | also accepted |", "|---|---|---|---|"]
    models: tuple[type[BaseModel], ...] = (LaunchOptions, RunSpec)
    for model in models:
        for field, about in settings_of(model).items():
            if about.group == group and not about.flag_only:
                name = about.name or field
                also = ", ".join(f"`{other}`" for other in names.other_names(model, field))
                meaning = f"{about.help} ({about.unit})" if about.unit else about.help
                default = default_of(model, field)
                rows.append(
                    f"| `{name}` | {meaning} | {'–' if default == '-' else f'`{default}`'} | {also or '–'} |"
                )
    return "\n".join(rows) + "\n"


def _exit_codes() -> str:
    rows = [f"| {code} | {meaning.text} | {meaning.retry} |" for code, meaning in MEANINGS.items()]
    insisted = ", ".join(str(128 + number) for number in sorted(protocol.STOP_SIGNALS))
    rows.append(f"| {insisted} | stopped at once by a second signal | yes, from the last checkpoint |")
    return "\n".join(["| code | meaning | start again? |", "|---|---|---|", *rows]) + "\n"


def _presets() -> str:
    shown = resolve.shown_names(RunSpec)
    rows = [f"| `{shown[each.field]}` | `{each.value:g}` | {each.when} |" for each in presets.PRESETS]
    return "\n".join(["| name | preset | of runs with |", "|---|---|---|", *rows]) + "\n"


def with_other_names(text: str, titles: tuple[str, ...]) -> str:
    """The text with the table of names for people who come from other trainers."""
    return _filled(text, "other trainers", lambda _: other_trainers.table(titles))


_PROOF = "tests/sdtrain/strategies/test_strategies.py"


def with_compatibility(text: str) -> str:
    """The text with the table of plugin × precision × device, as `sdjob.settings.compatibility` judges them."""
    return _filled(text, "compatibility", lambda _: _compatibility())


def _compatibility() -> str:
    kinds = list(DEVICE_FACTS)
    lines = [
        f"| plugin | precision | {' | '.join(kinds)} | tests |",
        "|---" * (len(kinds) + 3) + "|",
    ]
    for plugin in PLUGINS:
        for precision in ("no", "bf16", "fp16"):
            cells = [_works(plugin, precision, kind) for kind in kinds]
            if set(cells) != {"–"}:
                proof = f"`{_PROOF}`" if {"tested", "stand-in"} & set(cells) else "–"
                lines.append(f"| `{plugin}` | {precision} | {' | '.join(cells)} | {proof} |")
    return "\n".join(lines) + "\n"


def _works(plugin: str, precision: str, device: str) -> str:
    """With either recipe, with and without EMA and LoRA, which makes no difference to any plugin."""
    topology = compatibility.Topology(device, 1 if plugin == "none" or device == "mps" else 2, bf16=True)
    for recipe in RECIPES:
        for use_ema, lora_rank in itertools.product((False, True), (0, 4)):
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


def with_comments(text: str) -> str:
    """A preset with the help of every setting above its line. The head, up to the first empty line, stays."""
    head, _, body = text.partition("\n\n")
    lines = [line for line in body.splitlines() if line.strip() and not line.startswith("#")]
    return "\n\n".join([head, *(f"# {_help(line.partition('=')[0])}\n{line}" for line in lines)]) + "\n"


def _help(name: str) -> str:
    target = names.lookup(name)
    if target is None:
        return "passed on to the workers"
    about = settings_of(target.model)[target.field]
    unit = f" ({about.unit})" if about.unit else ""
    return f"{about.help}{unit} [{defaults_of(target.model, target.field)}]"


if __name__ == "__main__":
    for path, wanted in generated():
        if path.read_text(encoding="utf-8") != wanted:
            path.write_text(wanted, encoding="utf-8")
            print(f"rewritten: {path.relative_to(HOME)}")
