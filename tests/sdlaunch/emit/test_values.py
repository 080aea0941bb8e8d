"""Values of settings in every target: what the target's own reader gets is what the user wrote. Tests of emit/task."""

import contextlib
import io
import json
from itertools import pairwise

import pytest
import yaml
from ruamel.yaml import YAML

from sdjob.formatting import visible
from sdlaunch import cli
from tests.sdlaunch.emit.emitted import AWKWARD, MOUNTS, NODES, NUMBERED, run_with_stub, undollared
from tests.sdlaunch.workspace import HOME, clean_environment

TEXTS = (
    "class_prompt",
    "caption_column",
    "image_column",
    "class_data_dir",
    "cache_dir",
    "single_file_config",
)
BATCHES = (
    ("no", "1e-5", "0x10", "0o17", "null", "~"),
    ("是一只狗", "🐕 \u00a0\u2028x", "*a", "&b", "!c", "- d"),
    ("y", "1_000", "12:30:45", "2024-01-01", ".inf", "+1"),
    ("$(HOME)", "$$(HOME)", "${PATH}", "{{x}}", "a: b # c", "'\"\\"),
    ("\x1b[2Jx", "a\rb", "a'\x07\\b", "\u202eabc", "\x9bx", "x\u2066y"),
    ("%s %% \\n", "a\nb\n  c", "a\tb", "`id`", "[a, b]", "{a: b}"),
)


def emit(*arguments, **variables):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert cli.main(["emit", *arguments], clean_environment(**variables), HOME) == 0
    assert visible(text.getvalue()) == text.getvalue()  # a terminal shows it, and obeys none of it
    return text.getvalue()


def of_yaml(text):
    """What readers of YAML 1.1 (PyYAML) and of YAML 1.2 (those in Go) get: the same."""
    documents = list(yaml.safe_load_all(text))
    assert json.dumps(list(YAML(typ="safe", pure=True).load_all(text))) == json.dumps(documents)
    return documents


def listed(env):
    return {each["name"]: undollared(each["value"]) for each in env if "value" in each}


def read_docker(variables, folder):
    words, _ = run_with_stub("docker", emit("docker", **variables, **NODES), folder)
    given = [after for word, after in pairwise(words) if word == "--env"]
    return dict(each.split("=", 1) for each in given)


def read_compose(variables, folder):
    (document,) = of_yaml(emit("compose", **variables, **NODES))
    return {name: undollared(value) for name, value in document["services"]["sdjob"]["environment"].items()}


def read_train_job(variables, folder):
    *_, job = of_yaml(emit("kubernetes", **variables, **NUMBERED))
    return listed(job["spec"]["trainer"]["env"])


def read_indexed_job(variables, folder):
    *_, job = of_yaml(emit("kubernetes", "--kind=job", **variables, **NUMBERED))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return listed(container["env"])


def read_slurm(variables, folder):
    return run_with_stub("srun", emit("slurm", **variables, **NUMBERED), folder)[1]


def read_skypilot(variables, folder):
    (document,) = of_yaml(emit("skypilot", **variables, **NUMBERED))
    return document["envs"]


READERS = (read_docker, read_compose, read_train_job, read_indexed_job, read_slurm, read_skypilot)


@pytest.mark.parametrize("values", BATCHES, ids=lambda values: values[0])
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__.removeprefix("read_"))
def test_every_value_arrives_as_it_was_written(read, values, tmp_path):
    given = dict(zip(TEXTS, values, strict=True)) | {"instance_prompt": AWKWARD, "lr": "1e-4"}
    found = read({**MOUNTS, **given, "strict_env": "0"}, tmp_path)
    assert {name: found[name] for name in given} == given
