"""The command line: verbs, flags in every spelling, and what is not understood."""

import pytest

from sdlaunch import cli


def flags(*argv):
    request = cli.parse(argv)
    assert request.problems == ()
    return request.flags


@pytest.mark.parametrize(
    ("argv", "verb", "json"),
    [
        ([], "run", False),
        (["plan"], "plan", False),
        (["plan", "--json"], "plan", True),
        (["--json", "check"], "check", True),
        (["--dry-run"], "plan", False),
        (["--help"], "help", False),
        (["plan", "-h"], "help", False),
    ],
)
def test_verbs(argv, verb, json):
    request = cli.parse(argv)
    assert (request.verb, request.json, request.problems) == (verb, json, ())


@pytest.mark.parametrize("argv", [["--lr=1e-5"], ["lr=1e-5"], ["--lr", "1e-5"]])
def test_a_setting_in_every_form(argv):
    assert flags(*argv) == (("lr", "1e-5"),)


def test_dashes_and_underscores_are_the_same_in_names():
    assert flags("--env-file=a-b", "--batch-size", "2") == (("env_file", "a-b"), ("batch_size", "2"))


def test_switches_need_no_value_and_take_none():
    assert flags("--use_ema", "--lr", "-1") == (("use_ema", "true"), ("lr", "-1"))
    assert cli.parse(["--use_ema", "0"]).problems


def test_values_are_taken_as_they_are():
    assert flags("instance_prompt=a=b, --c", "class_prompt=") == (
        ("instance_prompt", "a=b, --c"),
        ("class_prompt", ""),
    )


@pytest.mark.parametrize("word", ["trian", "--nothing_like_it", "-x", "=", "--", "plan check", "batch_size"])
def test_what_is_not_understood(word):
    (problem,) = cli.parse([word]).problems
    assert problem.code == 64


def test_a_misspelt_flag_without_a_value_is_answered_with_its_name():
    (problem,) = cli.parse(["--bacth_size"]).problems
    assert "batch_size" in problem.remedy


@pytest.mark.parametrize("argv", [["plan", "check"], ["--json"], ["--lr"]])
def test_requests_that_make_no_sense(argv):
    assert [problem.code for problem in cli.parse(argv).problems] == [64]
