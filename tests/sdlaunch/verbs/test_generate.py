"""`generate`: its words reach the worker's command as they are, with the Python of the launcher."""

import subprocess
import sys

from sdlaunch import cli
from tests.sdlaunch.workspace import HOME

WORDS = ("/output", "--prompts", "a dog", "plan", "lr=1", "--help", "--", "--json")


def test_every_word_after_the_verb_is_passed_on():
    request = cli.parse(["generate", *WORDS])
    assert (request.verb, request.words, request.flags, request.problems) == ("generate", WORDS, (), ())


def test_another_verb_before_it_is_refused():
    [problem] = cli.parse(["plan", "generate", "/output"]).problems
    assert problem.found == "plan and generate"


def test_a_setting_before_it_is_refused(capsys):
    assert cli.main(["device=cpu", *("generate", *WORDS)], {}, HOME) == 64
    assert "generate with device" in capsys.readouterr().err


def test_the_worker_answers_from_any_folder_with_its_exit_code(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            HOME / "entrypoint.py",
            "generate",
            tmp_path / "none",
            "--prompts",
            "a dog",
            "--output",
            tmp_path / "o",
        ],
        cwd=tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 66
    assert str(tmp_path / "none") in done.stderr
