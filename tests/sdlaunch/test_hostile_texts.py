"""File names, captions and prompts with commands of terminals or directions of writing: shown as text everywhere."""

import json
import subprocess

from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.problems import bad_input
from sdlaunch.command import LaunchPlan
from sdlaunch.display import text as display
from sdlaunch.supervise.worker_output import Stream
from tests.support.launcher import prepare

HOSTILE = "dog\x1b[2J\x1b]0;owned\x07\u202egpj.exe\x9b31m"


def clean(text: str) -> bool:
    return visible(text) == text


def test_plan_check_and_their_json(workspace, tmp_path):
    (tmp_path / "dataset" / "images").rename(tmp_path / "dataset" / HOSTILE)
    (tmp_path / "dataset" / HOSTILE / "9.png").write_bytes(b"no image")
    job = prepare(
        workspace, instance_prompt=HOSTILE, dataset_name=HOSTILE, validation_prompts=json.dumps([HOSTILE])
    )
    texts = [
        display.plan(job),
        display.check(job),
        display.start(job),
        display.plan_json(job),
        display.check_json(job),
    ]
    assert all(map(clean, texts))
    assert json.loads(display.plan_json(job))["settings"]["instance_prompt"]["value"] == HOSTILE
    assert clean(display.plan(job, dim=True).replace("\x1b[2m", "").replace("\x1b[22m", ""))


def test_the_command_of_a_plan_says_the_same_to_a_shell():
    words = (HOSTILE, "a'b\\c", "plain", "x\x1b'\\\n\u202e0", "")
    plan = LaunchPlan(("printf", "%s|", *words), {}, ())
    assert clean(plan.shell())
    done = subprocess.run(
        ["bash", "-c", plan.shell()], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode() == "".join(f"{word}|" for word in words)


def test_a_problem_and_a_line_of_a_worker(tmp_path):
    assert clean(str(bad_input(HOSTILE, HOSTILE, HOSTILE)))
    lines: list[str] = []

    class Terminal:
        def show(self, text, *, progress=False):
            lines.append(text)

    with Stream(OutputLayout(tmp_path), 0, Terminal(), ()) as stream:
        stream.pump([(0, HOSTILE.encode()), (0, b"\x1b[31mred\x1b[0m")])
        stream.say(HOSTILE)
    assert [clean(line) for line in lines] == [True, False, True]
    assert lines[1] == "\x1b[31mred\x1b[0m"  # colors of a user's script
    log = OutputLayout(tmp_path).log(0).read_text()
    assert r"dog\x1b[2J\x1b]0;owned\x07\u202egpj.exe\u009b31m" in log and "\x07" not in log
