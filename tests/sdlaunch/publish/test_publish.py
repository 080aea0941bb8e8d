"""Publishing by the launcher: the check before a run, an upload on request, and the end of a run.

Tests of sdlaunch.publish.publish, and of the hub in sdlaunch.publish.upload.
"""

import os
import signal
import threading
from pathlib import Path

import pytest

from sdjob.exit_codes import ExitCode
from sdlaunch import cli, plan
from sdlaunch.publish import publish, upload
from sdlaunch.publish.address import parse
from sdlaunch.supervise import supervisor
from tests.sdlaunch.publish.conftest import FILES
from tests.sdlaunch.publish.hub_stand_in import READS, WRITES, served
from tests.sdlaunch.workspace import HOME, clean_environment


def environ(address, token=WRITES, **more):
    return clean_environment(HF_ENDPOINT=address, HF_TOKEN=token, **more)


def found_by_check(text, **variables):
    findings = publish.findings(text, clean_environment(**variables), has_script=False)
    return [each if isinstance(each, str) else f"{each.code} {each.found}" for each in findings]


def test_a_result_is_published_on_the_hub(result, capsys):
    with served() as (address, hub):
        hub.failures = [503]  # once
        lines = []
        code = publish.run(publish.upload_of(result, "hub:me/dog", "to"), environ(address), lines.append)
    assert code == 0, lines
    assert {name: content.decode() for name, content in hub.files.items()} == {name: name for name in FILES}
    assert hub.created[0]["visibility"] == "private"
    assert lines[-1].startswith("published: ") and WRITES not in "".join(lines)


def test_what_the_hub_refuses(result):
    lines = []
    with served() as (address, hub):
        hub.failures = [403]
        code = publish.run(publish.upload_of(result, "hub:me/dog", "to"), environ(address), lines.append)
        assert (code, hub.commits) == (73, 1)
        assert lines[-2].startswith("not published (HfHubHTTPError: ") and str(result) in lines[-2]
        again = f"bash train.sh publish to=hub:me/dog from={result}"
        assert lines[-1] == f"    → Repeat it: {again}"
        assert WRITES not in "".join(lines) and (result / "README.md").exists()


def test_the_token_is_asked_for_access_before_the_start(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with served() as (address, _):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        for token, name, found in (
            (WRITES, "hub:me/dog", None),
            (WRITES, "hub:ours/dog", None),
            (READS, "hub:me/dog", "the token in HF_TOKEN can only read"),
            (WRITES, "hub:theirs/dog", "the token in HF_TOKEN is not of theirs, but of me, ours"),
            ("", "hub:me/dog", "needs a token with write access in HF_TOKEN"),
        ):
            monkeypatch.setenv("HF_TOKEN", token)
            assert upload.check(parse(name)) == {"problem": found, "warning": None}
        found = "the token in HF_TOKEN can only read"
        assert found_by_check("hub:me/dog", HF_ENDPOINT=address, HF_TOKEN=READS) == [
            f"64 hub:me/dog: {found}"
        ]
        (unknown,) = found_by_check("hub:me/dog", HF_ENDPOINT=address, HF_TOKEN="hf_" + "x" * 30)
        assert unknown.startswith("64 hub:me/dog: ") and "x" * 30 not in unknown
    (warning,) = found_by_check(
        "hub:me/dog", HF_ENDPOINT=address, HF_TOKEN=WRITES
    )  # nothing answers any more
    assert warning.startswith("publish: hub:me/dog cannot be asked for access now")


def test_a_plan_with_a_place_that_cannot_be(workspace):
    def problems(**settings):
        found = plan.prepare([*settings.items()], workspace, HOME).problems
        return [(each.code, each.subject) for each in found]

    assert problems(publish="s3//bucket") == [(64, "publish")]
    assert problems(publish="nowhere://bucket") == [(64, "publish")]
    assert problems(publish="memory://bucket") == []
    if publish.importlib.util.find_spec("ossfs") is None:
        (problem,) = plan.prepare([("publish", "oss://bucket/x")], workspace, HOME).problems
        assert (
            problem.code == 69 and "ossfs not installed" in problem.found and "pip install" in problem.remedy
        )
    Path(workspace["DATASET_DIR"], "train.py").touch()
    script = f"{workspace['DATASET_DIR']}/train.py"
    assert (64, "publish") in problems(publish="memory://bucket", script=script)


def test_on_request(result, tmp_path, capsys):
    output = {**clean_environment(), "OUTPUT_DIR": str(result.parent)}
    target = tmp_path / "published"
    assert cli.main(["publish", f"to=file://{target}"], output, HOME) == 0
    names = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert names == FILES and f"published: file://{target}" in capsys.readouterr().out
    assert cli.main(["publish", f"publish=file://{target}/again", f"from={result}"], output, HOME) == 0
    assert (target / "again/README.md").read_text() == "README.md"
    for words, code, message in (
        ([], 64, "to: not given"),
        (["to=hub:dog"], 64, "names no repository"),
        ([f"to=file://{target}", f"from={tmp_path}"], 66, "holds no result"),
        ([f"to=file://{result}/README.md"], 73, "not published"),
    ):
        assert cli.main(["publish", *words], output, HOME) == code
        captured = capsys.readouterr()
        assert message in captured.err + captured.out


def test_a_signal_ends_an_upload(result):
    with served() as (address, hub):
        hub.failures = [503] * 5
        lines = []

        def say(line):
            lines.append(line)
            if "attempt 1 of 5 failed" in line:
                os.kill(os.getpid(), signal.SIGTERM)

        assert threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        code = publish.run(publish.upload_of(result, "hub:me/dog", "to"), environ(address), say)
    assert (code, signal.getsignal(signal.SIGTERM)) == (75, before)
    assert lines[-2].startswith("not published (SIGTERM)")


def test_a_refused_upload_leaves_the_result_of_a_finished_run(workspace, result, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    variables = {**clean_environment(), **workspace, "publish": f"file://{tmp_path}/file/published"}
    monkeypatch.setattr(supervisor, "_run_to_verdict", lambda job, environ: int(ExitCode.FINISHED))
    assert supervisor.run(plan.prepare((), variables, HOME), variables) == 73
    log = (tmp_path / "output/logs/node-0.log").read_text()
    assert f"the result is complete in {result}" in log
    assert "Repeat it: bash train.sh publish to=file://" in log
    assert (result / "README.md").exists() and not (tmp_path / "output/failure.json").exists()


@pytest.mark.parametrize("ending", [ExitCode.FINISHED, ExitCode.STOPPED])
def test_a_finished_run_is_published(workspace, result, tmp_path, monkeypatch, ending):
    target = tmp_path / "published"
    variables = {**clean_environment(), **workspace, "publish": f"file://{target}"}
    job = plan.prepare((), variables, HOME)
    assert not job.problems
    monkeypatch.setattr(supervisor, "_run_to_verdict", lambda job, environ: int(ending))
    assert supervisor.run(job, variables) == ending
    assert (target / "README.md").exists() == (ending == ExitCode.FINISHED)
