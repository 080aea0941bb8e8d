"""What all targets of `emit` have in common, and how a job is refused. Tests of emit/__init__ and emit/task."""

import pytest

from sdlaunch import cli
from sdlaunch.emit import TARGETS, Target
from tests.sdlaunch.emit.emitted import MOUNTS, NUMBERED, SETTINGS, emit
from tests.sdlaunch.workspace import HOME, clean_environment, launch


@pytest.mark.parametrize("target", ["docker", "compose"])
def test_targets_that_assign_no_ranks_ask_for_them(target):
    done = launch("emit", target, **SETTINGS, **NUMBERED)
    assert done.returncode == 64
    assert "NODE_RANK: not set" in done.stderr and "MASTER_ADDR: not set" in done.stderr


def test_only_settings_that_differ_from_their_defaults_are_passed_on():
    text = emit("docker", **MOUNTS, lr="5e-6", batch_size="1", precision="auto", NPROC_PER_NODE="auto")
    assert "--env" not in text
    assert "--gpus=all" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"Use one of {', '.join(TARGETS)}."),
        (["podman"], f"Use one of {', '.join(TARGETS)}."),
        (["kubernetes", "--kind=pod"], "Use one of trainjob, job."),
        (["docker", "--kind=job"], "Leave it out."),
    ],
)
def test_a_target_or_a_kind_that_is_not_known(arguments, message):
    done = launch("emit", *arguments, **MOUNTS)
    assert done.returncode == 64
    assert message in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_wrong_settings_are_refused():
    done = launch("emit", "docker", **MOUNTS, lr="-1")
    assert done.returncode == 64
    assert "lr: found '-1'" in done.stderr
    assert done.stdout == ""


def test_secrets_are_not_emitted():
    text = emit("docker", **MOUNTS, MY_TOKEN="hf_abcdefgh", instance_prompt="hf_abcdefgh")
    assert "hf_abcdefgh" not in text


def test_a_new_target_is_a_function_and_a_line_of_the_table(monkeypatch, capsys):
    def render(task):
        return f"acme run {task.image} {task.start} --nodes={task.nodes}"

    monkeypatch.setitem(TARGETS, "acme", Target(render, assigns_ranks=True))
    assert cli.main(["emit", "acme"], clean_environment(**MOUNTS, **NUMBERED), HOME) == 0
    assert capsys.readouterr().out == "acme run sd-finetune:cuda /mnt/project/train.sh --nodes=2\n"


def test_the_help_names_every_target(monkeypatch, capsys):
    for name in set(TARGETS) - {"docker", "kubernetes"}:
        monkeypatch.delitem(TARGETS, name)
    monkeypatch.setitem(TARGETS, "acme", Target(str))
    assert cli.main(["--help"], {}, HOME) == 0
    targets = "docker, kubernetes [--kind=trainjob|job] or acme"
    assert f"  emit TARGET      print the same job for {targets}\n" in capsys.readouterr().out
