"""A user's script instead of the worker: arguments, checks, plan, and a supervised run."""

import json

import pytest

from sdjob.problems import JobError
from sdlaunch import user_script
from tests.sdlaunch.workspace import launch, plan_json
from tests.support.launcher import found, pasted, prepare

VALUES = {
    "model": "/mnt/a model",
    "batch_size": 2,
    "lr": 1e-5,
    "use_ema": True,
    "seed": None,
    "two": ["a", "b"],
}
ECHO = "import json, os, sys\nprint(json.dumps(sys.argv[1:]), os.environ['RANK'], flush=True)\n"


@pytest.fixture
def echo(tmp_path):
    path = tmp_path / "my project" / "echo.py"
    path.parent.mkdir()
    path.write_text(ECHO)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("--model {model} -b={batch_size}", ("--model", "/mnt/a model", "-b=2")),
        ("{lr} {use_ema} '{seed}' {two}", ("1e-05", "true", "", '["a", "b"]')),
        ("'a b' \"it's\" \\$HOME $(x)", ("a b", "it's", "$HOME", "$(x)")),
        ('{{model}} {1} {} \'{"a": {"b": 1}}\'', ("{model}", "{1}", "{}", '{"a": {"b": 1}}')),
        ("a\n--b\tc # d", ("a", "--b", "c", "#", "d")),
    ],
)
def test_arguments(text, words):
    assert user_script.arguments_of(text, VALUES) == words


def test_a_value_is_filled_in_once():
    assert user_script.arguments_of("{model}", {"model": "{lr} 'x"}) == ("{lr} 'x",)


@pytest.mark.parametrize(
    ("text", "found", "remedy"),
    [
        ("--a 'b", "no closing quotation", "Close the quote"),
        ("{modle} {model}", "unknown placeholder {modle}", "Write {model}."),
        ("{zzz}", "unknown placeholder {zzz}", "{{zzz}} stands for the text {zzz}."),
    ],
)
def test_arguments_that_are_refused(text, found, remedy):
    with pytest.raises(JobError) as error:
        user_script.arguments_of(text, VALUES)
    (problem,) = error.value.problems
    assert (problem.code, problem.subject) == (64, "script_args")
    assert found in problem.found
    assert remedy in problem.remedy


def test_the_command_runs_the_script_instead_of_the_worker(workspace, echo, tmp_path):
    arguments = "--model {model} --data {dataset} --out {output}/x --n {nproc} "
    arguments += "--lr {learning_rate} -p {instance_prompt}"
    code, printed = plan_json(
        **workspace,
        script=str(echo),
        script_args=arguments,
        NPROC_PER_NODE="2",
        instance_prompt="it's $(a) b",
        lr="1e-4",
    )
    assert (code, printed["problems"], printed["warnings"]) == (0, [], [])
    assert printed["argv"][1:] == [
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file,keep_alive_interval=86400",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
        "--log-dir=/dev/null",
        *("-m", "sdjob.rank_output", str(echo)),
        *("--model", str(tmp_path / "model" / "tiny")),
        *("--data", str(tmp_path / "dataset" / "images")),
        *("--out", f"{tmp_path}/output/x"),
        *("--n", "2", "--lr", "0.0001", "-p", "it's $$(a) b"),
    ]
    assert printed["mounts"]["PROJECT_DIR"]["uses"] == str(echo)
    assert printed["settings"]["script"] == {"value": str(echo), "source": "environment: script"}
    assert printed["settings"]["hang_timeout"] == {"value": 0.0, "source": "script"}


def test_a_relative_script_lies_below_the_project(workspace, echo):
    job = prepare(workspace, script="echo.py", PROJECT_DIR=str(echo.parent))
    assert (job.problems, job.launch.argv[-1]) == ((), str(echo))
    assert found(prepare(workspace, script="echo.py")) == [("script", 66)]
    assert found(prepare(workspace, script="echo.py", PROJECT_DIR="/nonexistent")) == [("PROJECT_DIR", 66)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("#!/bin/sh\nif true; then fi\n", "not a Python program (line 2"),
        ("a = '\0'", "not a Python program"),
    ],
)
def test_a_script_that_cannot_run(workspace, tmp_path, content, words):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    job = prepare(workspace, script=str(path))
    assert found(job) == [("script", 66)]
    assert words in job.problems[0].found
    assert found(prepare(workspace, script=str(tmp_path))) == [("script", 66)]


def test_mistakes_in_the_arguments_are_settings(workspace, echo):
    assert found(prepare(workspace, script=str(echo), script_args="'")) == [("script_args", 64)]
    job = prepare(workspace, script=str(echo), script_args="{bacth_size} {x}")
    assert found(job) == [("script_args", 64), ("script_args", 64)]
    assert job.launch is None
    assert found(prepare(workspace, script_args="a")) == [("script_args", 64)]


def test_a_hang_timeout_that_the_user_sets_stays(workspace, echo):
    assert prepare(workspace, script=str(echo), hang_timeout="9").settings["hang_timeout"].value == 9.0


def test_data_that_the_worker_cannot_read_is_left_to_the_script(workspace, echo, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.bin").write_bytes(b"x")
    other = {**workspace, "DATASET_DIR": str(tmp_path / "other")}
    assert found(prepare(other)) == [(str(tmp_path / "other"), 66)]
    job = prepare(other, script=str(echo), script_args="{dataset}")
    assert job.problems == ()
    assert "left to the script" in job.warnings[0]
    assert job.launch.argv[-1] == str(tmp_path / "other")
    assert found(prepare({**workspace, "DATASET_DIR": "/nonexistent"}, script=str(echo))) == [
        ("DATASET_DIR", 66)
    ]
    assert {code for _, code in found(prepare(other, script=str(echo), dataset_name="none"))} == {66}


def test_the_pasted_command_runs_the_script_with_the_same_words(workspace, echo, tmp_path):
    prompt = 'it\'s "a"\n$(touch pwned) `touch pwned` ünï'
    job = prepare(workspace, script=str(echo), script_args="-p {instance_prompt} ''", instance_prompt=prompt)
    said = pasted(job, tmp_path)
    assert f"{json.dumps(['-p', prompt, ''])} 0" in said
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(("ending", "code"), [("", 0), ("sys.exit(3)", 70)])
def test_a_run_is_supervised_and_its_code_is_the_documented_one(workspace, echo, tmp_path, ending, code):
    echo.write_text(ECHO + ending)
    done = launch(**workspace, script=str(echo), script_args="{model}", NPROC_PER_NODE="2")
    assert done.returncode == code, done.stdout + done.stderr
    log = (tmp_path / "output" / "logs" / "node-0.log").read_text()
    words = json.dumps([str(tmp_path / "model" / "tiny")])
    said = [f"[rank {rank}] {words} {rank}" in log for rank in (0, 1)]
    # A rank that fails may end before the other one has come to say anything.
    assert all(said) if code == 0 else any(said)
    assert (tmp_path / "output" / "failure.json").exists() == (code != 0)
