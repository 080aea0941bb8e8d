"""Any folder of data: if the checks pass, the worker reads every example; if not, the message names what is there."""

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from sdjob.dataset.detect import dataset_in
from sdjob.dataset.images import decode
from sdjob.problems import JobError, Problem
from sdjob.settings.run_spec import RunSpec
from sdlaunch.inputs.contents import Contents
from sdlaunch.preflight import captions, data_use, image_checks
from sdlaunch.preflight.job import Job
from sdtrain.data.sources import open_source
from tests.support.data_folders import TEXTS, write_folder

FOLDERS = pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.long)])
WRITTEN = {"a subject", "x", *(text.strip() for text in TEXTS)}  # a caption is whole, or refused


def check(folder: Path, spec: RunSpec) -> tuple[Contents | None, list[Problem]]:
    """What the launcher finds in a folder of data, and its problems."""
    try:
        info = dataset_in(folder, spec, captions=spec.recipe_facts.reads_captions)
    except JobError as error:
        return None, list(error.problems)
    contents = Contents(None, info, (), folder, info.path, folder, ())
    job = Job(spec, None, None, None, contents, time.monotonic() + 100, 100.0)  # type: ignore[arg-type]
    checks = (data_use.findings, captions.findings, image_checks.findings)
    found: list[Problem] = []
    for each in checks:
        try:
            found += [finding for finding in each(job) if isinstance(finding, Problem)]
        except JobError as error:
            found += error.problems
    return contents, found


def names_something(problem: Problem, folder: Path) -> bool:
    """Whether the message has a path at or below the folder that exists."""
    text = f"{problem.subject} {problem.found}"
    start = text.find(str(folder))
    ends = range(start + len(str(folder)), len(text) + 1)
    return start >= 0 and any(Path(text[start:end]).exists() for end in ends)


def examples_of(contents: Contents, spec: RunSpec, cache: Path) -> list[tuple[str, str | None]]:
    """(name, caption) of all examples as the worker reads them, from the folder that the launcher hands it."""
    assert contents.dataset
    info = dataset_in(contents.dataset_path, spec, captions=spec.recipe_facts.reads_captions)
    source = open_source(info, cache, None if info.caption_column else "a subject")
    assert len(source) == contents.dataset.num_examples > 0
    for index in range(len(source)):
        assert decode(source[index].encoded()).mode == "RGB"
    return [(source[index].name(), source[index].caption()) for index in range(len(source))]


@FOLDERS
@pytest.mark.parametrize("recipe", ["text_to_image", "dreambooth"])
def test_what_the_checks_let_pass_is_read_and_what_they_refuse_is_there(tmp_path, recipe, count):
    spec = RunSpec(
        pretrained_model_name_or_path="model", output_dir="output", recipe=recipe, verify_images="all"
    )
    outcomes = Counter()
    for seed in range(count):
        folder = tmp_path / "data"
        write_folder(folder, seed)
        contents, problems = check(folder, spec)
        if problems:
            assert all(problem.code in (64, 66) for problem in problems), seed
            assert all(names_something(problem, folder) for problem in problems), (seed, problems)
        else:
            read = examples_of(contents, spec, tmp_path / "cache")
            assert len({name for name, _ in read}) == len(read), seed
            assert {(caption or "").strip() for _, caption in read} <= WRITTEN, seed
        outcomes[bool(problems)] += 1
        shutil.rmtree(folder)
    assert min(outcomes[True], outcomes[False]) > count / 10, "both ends of the property are tested"


@pytest.mark.long
def test_two_steps_are_trained_where_the_checks_pass(train, tmp_path):
    trained = 0
    for seed in range(60):
        spec = RunSpec(pretrained_model_name_or_path="model", output_dir="output", recipe="text_to_image")
        folder = tmp_path / f"data-{seed}"
        write_folder(folder, seed)
        contents, problems = check(folder, spec)
        if contents and not problems:
            output = train(f"output-{seed}", train_data_dir=contents.dataset_path, max_train_steps=2)
            assert json.loads((output / "report.json").read_text())["steps"] == 2
            trained += 1
    assert trained > 10
