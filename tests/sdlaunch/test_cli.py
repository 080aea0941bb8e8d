"""The command line: verbs, flags in every form, and words that mean nothing. Tests of cli.py and request.py."""

import difflib
import json
from pathlib import Path

import pytest

from sdlaunch import cli
from sdlaunch.settings import names


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


def test_switches_need_no_value():
    assert flags("--use_ema", "--lr", "-1") == (("use_ema", "true"), ("lr", "-1"))
    assert flags("--use_8bit_adam", "--seed", "1") == (("use_8bit_adam", "true"), ("seed", "1"))
    assert flags("--scale_lr", "--offset_noise", "no") == (("scale_lr", "true"), ("offset_noise", "no"))
    assert flags("--use_ema", "0", "plan") == (("use_ema", "0"),)
    assert cli.parse(["--use_ema", "2"]).problems


def test_a_list_takes_all_words_that_follow():
    given = (("validation_prompts", "a dog"), ("validation_prompts", "a = b"), ("lr", "1"))
    for last in (["--lr", "1"], ["lr=1"], ["plan", "lr=1"]):
        assert flags("--validation_prompts", "a dog", "a = b", *last) == given


def test_the_words_after_a_flag_without_a_counterpart_belong_to_it():
    given = (("hub_token", "abc"), ("validation_images", "a.png"), ("validation_images", "b.png"))
    assert flags("--hub_token", "abc", "--validation_images", "a.png", "b.png", "check") == given
    (problem,) = cli.parse(["--hub_model_id", "--use_ema"]).problems
    assert problem.found == "no value"


def test_values_are_taken_as_they_are():
    assert flags("instance_prompt=a=b, --c", "class_prompt=") == (
        ("instance_prompt", "a=b, --c"),
        ("class_prompt", ""),
    )


@pytest.mark.parametrize("word", ["trian", "--nothing_like_it", "-x", "=", "--", "plan check", "batch_size"])
def test_words_that_mean_nothing(word):
    (problem,) = cli.parse([word]).problems
    assert problem.code == 64


def test_a_misspelled_flag_without_a_value_is_answered_with_its_name():
    (problem,) = cli.parse(["--bacth_size"]).problems
    assert "batch_size" in problem.remedy


@pytest.mark.parametrize(("word", "verb"), [("doctr", "doctor"), ("--check", "check"), ("emti", "emit")])
def test_a_misspelled_verb_is_answered_with_its_name(word, verb):
    (problem,) = cli.parse([word]).problems
    assert problem.remedy == f"Did you mean {verb}?"


def test_no_setting_resembles_a_verb():
    assert [
        name for name in names.catalogue() if difflib.get_close_matches(name, cli.VERBS, cutoff=0.75)
    ] == ["publish"]  # `publish=…` at the end of a run, and the verb on request
    assert cli.parse(["publish", "to=hub:a/b"]).verb == "publish"
    assert cli.parse(["--publish", "hub:a/b"]) == cli.parse(["publish=hub:a/b"])


@pytest.mark.parametrize("argv", [["--json"], ["emit", "docker", "--json"]])
def test_json_of_a_verb_that_prints_none_is_refused(argv):
    (problem,) = cli.parse(argv).problems
    assert (problem.code, problem.remedy) == (64, "Write plan --json or check --json or doctor --json.")


@pytest.mark.parametrize("argv", [["plan", "check"], ["--lr"]])
def test_contradictory_requests(argv):
    assert [problem.code for problem in cli.parse(argv).problems] == [64]


def test_emit_takes_the_next_word_and_an_argument_of_its_own():
    request = cli.parse(["--kind=job", "emit", "kubernetes", "lr=1"])
    assert (request.verb, request.operand, request.arguments) == ("emit", "kubernetes", {"kind": "job"})
    assert (request.flags, request.problems) == ((("lr", "1"),), ())
    assert cli.parse(["--kind=job", "plan"]).flags == (("kind", "job"),)  # an unknown setting


def test_a_new_verb_is_a_function_and_a_line_of_the_table(monkeypatch, capsys):
    def greet(request, environ, home):
        print("hello", request.arguments["to"], environ["ME"])
        return 7

    monkeypatch.setitem(cli.VERBS, "greet", cli.Verb(greet, "says hello", arguments=("to",)))
    assert cli.main(["greet", "to=you"], {"ME": "I"}, Path()) == 7
    assert cli.main(["--help"], {}, Path()) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("hello you I\n")
    assert "  greet            says hello\n" in printed


@pytest.mark.parametrize(
    ("argv", "found"), [(["doctor", "lr=1"], "doctor with lr"), (["doctor", "x"], "'x'")]
)
def test_doctor_takes_no_settings_and_looks_at_no_mounts(argv, found, capsys):
    assert cli.main(argv, {}, Path()) == 64
    printed = capsys.readouterr().out
    assert found in printed and "1 problem;" in printed
    assert cli.main([*argv, "--json"], {}, Path()) == 64
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert found in problem["found"]


@pytest.mark.parametrize("verb", ["export", "publish", "convert", "init"])
def test_a_verb_does_nothing_after_words_that_mean_nothing(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "output"
    assert cli.main(["!?", verb], {"OUTPUT_DIR": str(output)}, tmp_path) == 64
    assert "'!?' is neither a verb nor a setting" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
