"""The documents: commands that work, links that lead somewhere, and two languages in step."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from sdjob.settings import flags as worker_flags
from sdlaunch import cli, plan
from sdlaunch.documents.translations import chinese
from sdlaunch.emit import TARGETS
from sdlaunch.settings import names
from sdlaunch.verbs import convert
from tests.sdlaunch.workspace import clean_environment, make_workspace
from tests.support.datasets import make_parquet

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "mount_layout.md",
        ROOT / "docker/README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/tutorials").glob("*.md"),
    )
    if path.with_suffix(".zh-CN.md").exists()
]
CHINESE = [path.with_suffix(".zh-CN.md") for path in ENGLISH]
BOTH = sorted([*ENGLISH, *CHINESE])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s+(#|//) .*$|^# .*$", re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text without comments) of each block of code."""
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(language, COMMENT.sub("", text)) for language, text in found]


def commands(path: Path) -> list[str]:
    """Commands for a shell, one each."""
    lines = [
        line
        for language, text in blocks(path)
        if not language
        for line in text.replace("\\\n", " ").splitlines()
    ]
    return [line.strip() for line in lines if line.strip() and not re.match(r"[/├└│]", line)]


def test_the_documents_that_users_need_are_in_both_languages():
    wanted = [
        "platform",
        "settings",
        "data",
        "results",
        "troubleshooting",
        "multi-node",
        "performance",
        "coming-from",
    ]
    assert {path.stem for path in ENGLISH} >= {"README", *wanted}


@pytest.mark.parametrize("path", ENGLISH, ids=name)
def test_headings_commands_and_tables_are_in_step(path):
    other = path.with_suffix(".zh-CN.md")
    english, translated = (each.read_text(encoding="utf-8") for each in (path, other))

    def outline(text: str) -> list[str]:
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        return re.findall(r"^(#+) ", text, re.MULTILINE)

    def shapes(text: str) -> list[int]:
        """Columns of each row of each table."""
        return [row.count("|") for row in text.splitlines() if row.startswith("|")]

    def marks(text: str) -> list[str]:
        return [mark.replace(" zh", "") for mark in re.findall(r"<!-- (.*?) -->", text)]

    assert outline(english) == outline(translated)
    assert shapes(english) == shapes(translated)
    assert marks(english) == marks(translated)
    assert len(blocks(path)) == len(blocks(other))
    assert commands(path) == commands(other)


@pytest.mark.parametrize("path", ENGLISH, ids=name)
def test_every_section_names_the_same_in_both_languages(path):
    """A setting, value or file that one of them has gained or lost."""

    def named(text: str) -> list[set[str]]:
        without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        sections = re.split(r"^#+ .*$", without_blocks, flags=re.MULTILINE)
        return [set(re.findall(r"`([^`\n]+)`", section)) for section in sections]

    english, translated = (
        named(each.read_text(encoding="utf-8")) for each in (path, path.with_suffix(".zh-CN.md"))
    )
    assert [section ^ other for section, other in zip(english, translated, strict=True)] == [set()] * len(
        english
    )


@pytest.mark.parametrize("path", BOTH, ids=name)
def test_links_lead_to_files_and_headings(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads], (
                target
            )
        if "zh-CN" in path.name and linked.suffix == ".md" and "zh-CN" not in linked.name and linked != path:
            translation = linked.with_suffix(".zh-CN.md")
            assert not translation.exists() or translation == path, f"{target} exists in Chinese"


@pytest.fixture(scope="module")
def mounts(tmp_path_factory) -> dict[str, str]:
    """Mounts with one tiny model and images."""
    return make_workspace(tmp_path_factory.mktemp("mounts"))


@pytest.fixture(scope="module")
def named_mounts(tmp_path_factory) -> dict[str, str]:
    """Mounts with the names that the files in env/ use."""
    root = tmp_path_factory.mktemp("named")
    made = make_workspace(root)
    for model in ("stable-diffusion-v1-4", "stable-diffusion-2-1"):
        shutil.copytree(root / "model" / "tiny", root / "model" / model)
    for dataset in ("Teyvat", "pokemon-blip-captions"):
        make_parquet(root / "dataset" / dataset)
    return made


@pytest.mark.parametrize("command", sorted({line for path in BOTH for line in commands(path)}))
def test_every_command_is_understood(command, mounts, named_mounts, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    variables = {}
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
        variable, _, value = words.pop(0).partition("=")
        variables[variable] = value
    if words[:2] == ["bash", "train.sh"]:
        understood_by_launcher(words[2:], variables, named_mounts if "ENV_FILE" in variables else mounts)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] in ("python", ".venv/bin/python", "torchrun"):
        module = words[words.index("-m") + 1]
        below = ROOT / variables.get("PYTHONPATH", "") / module.replace(".", "/")
        assert below.is_dir() or below.with_suffix(".py").exists() or module == "http.server"
        understood_by_module(module, words[words.index("-m") + 2 :])
    elif words[0] in ("docker", "tensorboard", "git", "cp", "bash", "hf", "pip"):
        relative = [word for word in words if "/" in word and not word.startswith("/")]
        files = [word for word in relative if (ROOT / word.split("/")[0]).exists()]
        assert all((ROOT / file).exists() for file in files)
        understood_by_docker(words)
    else:
        pytest.fail(f"no rule for {words[0]}")


def understood_by_launcher(words: list[str], variables: dict[str, str], mounts: dict[str, str]) -> None:
    """The words of the launcher, with the mounts in the place of those that the document names."""
    words = words[: words.index(">")] if ">" in words else words
    request = cli.parse(words)
    assert request.problems == ()
    if request.verb == "convert":
        if request.words:
            convert.source_of("", request.words)
    elif request.verb == "generate":
        understood_by_module("sdtrain.generate", list(request.words))
    elif request.verb in ("run", "plan", "check", "emit"):
        of_folders = {"MODEL_DIR", "DATASET_DIR", "OUTPUT_DIR", "CONFIG_FILE"}
        given = {name: value for name, value in variables.items() if name not in of_folders}
        settings = [flag for flag in request.flags if flag[0] not in ("env_file", "ENV_FILE")]
        if "ENV_FILE" in given and "dataset_name=" not in (ROOT / given["ENV_FILE"]).read_text():
            settings.append(("dataset_name", "images"))
        job = plan.prepare(settings, clean_environment(**{**given, **mounts}), ROOT)
        elsewhere = {"MASTER_ADDR"} if "NNODES" in given else set()
        elsewhere |= {"plugin", "mixed_precision"} if "ENV_FILE" in given else set()  # this is a CPU
        assert [problem for problem in job.problems if problem.subject not in elsewhere] == []


def understood_by_docker(words: list[str]) -> None:
    """Variables are settings, and mounts go where the launcher looks."""
    for flag, word in itertools.pairwise(words):
        if flag == "-e":
            assert names.lookup(word.partition("=")[0]), word
        elif flag == "-v":
            assert word.split(":")[1] in ("/mnt/model", "/mnt/dataset", "/mnt/project", "/output"), word


def understood_by_module(module: str, words: list[str]) -> None:
    if module == "sdtrain":
        worker_flags.parse(words)
    elif module == "sdtrain.generate":
        from sdtrain.generate import options

        options.parse([word if word != "MODEL" else "m" for word in words])


@pytest.mark.parametrize("path", ENGLISH, ids=name)
def test_python_and_json_are_well_formed(path):
    for language, text in blocks(path):
        if language == "python":
            ast.parse(text)
        elif language == "json":
            json.loads(text)


def test_nearly_every_generated_text_is_translated():
    """What has changed in the code is English until docs/zh-CN.yaml follows."""
    rows = [
        line.split(" | ")
        for path in CHINESE
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and line.count(" | ") >= 2
    ]
    english = [row for row in rows if not re.search(r"[\u4e00-\u9fff]", row[1])]
    assert len(english) <= 0.1 * len(rows), [row[0] for row in english]
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in chinese().values())


def test_every_translation_is_shown():
    """A text that has changed in the code needs its new English in docs/zh-CN.yaml."""
    shown = "".join(path.read_text(encoding="utf-8") for path in (*CHINESE, ROOT / "mount_layout.md"))
    shown = shown.replace("\\|", "|")
    assert [english for english, text in chinese().items() if text not in shown] == []


def test_the_targets_of_emit_are_listed():
    """In the table's order; test_headings_commands_and_tables_are_in_step compares the languages."""
    listed = [line.split()[3] for line in commands(ROOT / "docs/platform.md") if " emit " in line]
    assert listed == list(TARGETS)


MAP = (
    (ROOT / "CONTRIBUTING.md")
    .read_text(encoding="utf-8")
    .partition("## To change X")[2]
    .partition("\n## ")[0]
)


def located(word: str, folder: Path) -> Path | None:
    """The file or folder that a word of the map names, below project/, the root, or the folder of the one before it."""
    found = (base / word for base in (ROOT / "project", ROOT, folder))
    return next((path for path in found if path.exists()), None)


PATH = re.compile(r"/$|\.(?:py|js|css|md|txt|toml|yaml)$")


def test_the_map_names_files_that_exist_and_what_is_in_them():
    wrong = []
    for what, where in re.findall(r"^\| (.+?) \| (.+) \|$", MAP, re.MULTILINE):
        words = re.findall(r"`([^`]+)`", where)
        files, folder = [], ROOT
        for word in filter(PATH.search, words):
            path = located(word, folder)
            wrong += [] if path else [f"{what}: {word}"]
            if path:
                folder = path if path.is_dir() else path.parent
                files += sorted(path.glob("*.py")) if path.is_dir() else [path]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        joined = [word for word in words if re.fullmatch(r"[\w.]+", word) and not PATH.search(word)]
        names = [name for word in joined for name in word.split(".")]
        wrong += [f"{what}: {name}" for name in names if not re.search(rf"\b{name}\b", text)]
    assert wrong == []


def test_the_map_marks_the_rows_that_have_an_example():
    marked = re.findall(r"^\| (.+?) ◆ \|", MAP, re.MULTILINE)
    examples = re.findall(
        r"^## (.+)$", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(marked) == sorted(name.lower() for name in examples)
