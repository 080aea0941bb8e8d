"""The subject of every problem in the source: what can fix it, by a name that users know, or a path."""

import ast
from pathlib import Path

from sdjob.problems import NAMED_SUBJECTS
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import names

ROOT = Path(__file__).resolve().parent.parent / "project"
BUILDERS = {"bad_setting": 0, "bad_input": 0, "no_hardware": 0, "bad_output": 0, "Problem": 1, "_row": 1}
# Arguments of verbs and tools, and variables of platforms, which are no settings.
ARGUMENTS = {"--json", "--kind", "emit", "checkpoint", "to", "length", "--base_model", "--output"}
ARGUMENTS |= {"MODEL", "--lora", "--prompts", "--prompts_file", "--scheduler"}  # of sdtrain.generate
VARIABLES = {"WORLD_SIZE", "LOCAL_RANK", "TMPDIR", "/dev/shm"}
KNOWN = {*names.catalogue(), *settings_of(RunSpec), *NAMED_SUBJECTS, *ARGUMENTS, *VARIABLES}


def texts(node: ast.expr) -> list[str]:
    """The texts that an expression may be, as far as they stand in it."""
    if isinstance(node, ast.Constant):
        return [node.value]
    return [*texts(node.body), *texts(node.orelse)] if isinstance(node, ast.IfExp) else []


def subjects() -> dict[str, list[str]]:
    """Every subject that is spelled in the source → where."""
    found: dict[str, list[str]] = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILDERS:
                for text in texts((node.args[BUILDERS[node.func.id] :] or [node.func])[0]):
                    found.setdefault(text, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_subjects_are_settings_arguments_paths_or_named_things():
    found = subjects()
    assert {"OUTPUT_DIR", "plugin", "device", "Python packages"} < found.keys()
    assert {subject: where for subject, where in found.items() if subject not in KNOWN} == {}


def test_nothing_is_excepted_in_vain():
    spelled = {
        *subjects(),
        "host memory",
        "device memory",
        "loss",
        "weights",
    }  # these have names in the source
    assert spelled >= NAMED_SUBJECTS | ARGUMENTS | VARIABLES
