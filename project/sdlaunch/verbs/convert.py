"""`convert`: the command line or configuration file of another trainer as an env file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.children.bounded import in_child
from sdjob.exit_codes import ExitCode
from sdjob.problems import JobError, bad_setting
from sdlaunch.convert import command_line, env_file, kohya, launchers, simpletuner
from sdlaunch.convert.lines import Flag, Line
from sdlaunch.convert.scripts import KOHYA_LORA, SCRIPTS, Script
from sdlaunch.convert.translate import Source, lines_of
from sdlaunch.display import console

_LARGEST = 128 << 10  # bytes of a script or a configuration
_PATIENCE = 10.0  # seconds for reading TOML, whose reader takes a square of the names in a key
_UNKNOWN_SCRIPT = (
    "The file does not say which script reads it: train_db.py trains the text encoder too (train_text_encoder=1), "
    "fine_tune.py does not."
)


def run(path: str, words: Sequence[str]) -> int:
    """Print the env file; what is said in its comments also goes to standard error.

    64 if something that changes the result has no equivalent, though the rest is printed. Raises JobError (64) where
    nothing can be converted.
    """
    source = source_of(path, words)
    lines = env_file.settle(lines_of(source))
    console.show(env_file.render(source.title, lines), sys.stdout)
    console.show(env_file.report(lines), sys.stderr)
    return ExitCode.BAD_SETTING if any(line.lost for line in lines) else ExitCode.FINISHED


def source_of(path: str, words: Sequence[str]) -> Source:
    """Read what is to be converted. Raises JobError (64)."""
    if bool(path) == bool(words):
        found = "a file and a command" if path else "nothing to convert"
        remedy = "Write convert FILE, or convert -- accelerate launch train_dreambooth.py …"
        raise JobError(bad_setting("command line", found, remedy))
    if words:
        return _of_command(command_line.from_words(words, SCRIPTS), Path())
    if path.lower().endswith(".toml"):
        flags, remarks = kohya.flags_of_toml(_toml(Path(path)))
        return _of_kohya_file(path, flags, remarks)
    if path.lower().endswith(".json"):
        return _of_simpletuner(path)
    return _of_command(command_line.from_text(_text(Path(path)), SCRIPTS), Path(path).parent)


def _of_command(command: command_line.Command, folder: Path) -> Source:
    """A command; files with settings that it names are read too, from its own folder if they are relative."""
    script = SCRIPTS[command.script]
    flags, remarks = list(command.flags), list(command.remarks)
    if script.trainer == "kohya":
        flags, said = _with_files(flags, folder)
        remarks += said
        flags, ineffective = kohya.prepared(flags)
        remarks += ineffective
        script = replace(script, recipe=kohya.recipe(flags))
    launcher_flags, said = _with_accelerate_file(command.launcher_flags, folder)
    remarks += said
    started = launchers.lines_of(command.launcher, launcher_flags)
    title = f"{command.script}.py"
    return Source(title, script, tuple(flags), tuple(started), command.variables, tuple(remarks))


def _with_accelerate_file(flags: Sequence[Flag], folder: Path) -> tuple[list[Flag], list[Line]]:
    """A file of `accelerate config` replaced by the flags in it; left to the job where it is not here."""
    import yaml

    given = {flag.name: flag for flag in flags}
    file = given.get("config_file")
    try:
        content = reading.yaml_of(_text(folder / file.text), yaml.SafeLoader) if file else None
    except (JobError, ValueError):
        content = None
    if file is None or not isinstance(content, dict):
        return [*flags], []
    keys = (Flag.of_key(name, [] if value == {} else value) for name, value in content.items())
    read = [flag for flag in keys if flag.name not in given]
    said = Line(str(file), remark="Its keys are settings here; flags of the command line take precedence.")
    return [*(flag for flag in flags if flag is not file), *read], [said]


def _of_kohya_file(path: str, flags: Sequence[Flag], remarks: Sequence[Line]) -> Source:
    flags, said = _with_files(flags, Path(path).parent)
    flags, ineffective = kohya.prepared(flags)
    known = SCRIPTS["fine_tune"]
    script = Script("kohya", kohya.recipe(flags), KOHYA_LORA if kohya.is_lora(flags) else known.defaults)
    if not kohya.is_lora(flags) and not any(flag.name == "train_text_encoder" for flag in flags):
        said = [*said, Line(Path(path).name, remark=_UNKNOWN_SCRIPT)]
    return Source(Path(path).name, script, tuple(flags), remarks=(*remarks, *said, *ineffective))


def _of_simpletuner(path: str) -> Source:
    try:
        content = reading.json_of(_text(Path(path)))
    except ValueError as error:
        raise JobError(bad_setting("command line", f"{path}: {error}", "Fix the JSON syntax.")) from None
    if not isinstance(content, dict):
        raise JobError(
            bad_setting("command line", f"{path} is not an object", "Give SimpleTuner's config.json.")
        )
    flags = simpletuner.flags_of_json(content)
    defaults = {"lora_rank": "16"} if simpletuner.is_lora(flags) else {}
    return Source(Path(path).name, Script("SimpleTuner", "text_to_image", defaults), tuple(flags))


def _with_files(flags: Sequence[Flag], folder: Path) -> tuple[list[Flag], list[Line]]:
    """`config_file` and `dataset_config` replaced by the flags in them; those of the command line win."""
    files = ("config_file", "dataset_config")
    own = [flag for flag in flags if flag.name not in files]
    read: list[Flag] = []
    remarks: list[Line] = []
    for flag in (each for each in flags if each.name in files):
        name = flag.text if flag.text.endswith(".toml") else f"{flag.text}.toml"
        try:
            found, said = kohya.flags_of_toml(_toml(folder / name))
        except JobError as error:
            text = f"Could not be read ({error.problems[0].found}): convert it too."
            remarks.append(Line(str(flag), remark=text, lost=True))
            continue
        inner = [each for each in found if each.name != "config_file"]  # it may name itself
        nested, deeper = (
            _with_files(inner, (folder / name).parent) if flag.name == "config_file" else (inner, [])
        )
        read += nested
        remarks += [*said, *deeper]
    mine = {flag.name for flag in own}
    return [*(flag for flag in read if flag.name not in mine), *own], remarks


def _text(path: Path) -> str:
    try:
        return reading.content(path, _LARGEST, patience=reading.PATIENCE).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        found = f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        raise JobError(bad_setting("command line", found, "Give the path of a readable file.")) from None


def _toml(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        return in_child(reading.toml_of, text, subject=str(path), patience=_PATIENCE)
    except JobError as error:
        raise JobError(
            bad_setting("command line", f"{path} {error.problems[0].found}", "Give a shorter file.")
        ) from None
    except ValueError as error:
        remedy = "Fix the TOML syntax."
        if sys.version_info < (3, 11):
            remedy = "Use Python 3.11 or newer, or convert the command line."
        raise JobError(bad_setting("command line", f"{path}: {error}", remedy)) from None
