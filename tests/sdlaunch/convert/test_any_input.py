"""Tests of convert with any input: no traceback, no flag unsaid, and an env file that reads back as it was meant."""

import shlex

from hypothesis import given, settings
from hypothesis import strategies as st

from sdjob.problems import JobError
from sdlaunch.convert import command_line, env_file, launchers
from sdlaunch.convert.scripts import SCRIPTS
from sdlaunch.convert.translate import Source, lines_of
from sdlaunch.settings import sources
from tests.sdjob.settings.test_diffusers_flags import FLAGS

VALUES = st.one_of(
    st.sampled_from(
        ["1", "0", "true", "512,768", "$X", "${X}", "a # b", '"q"', "'", "", "-1", "1e-4", "a\nb", "a/b"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
NAMES = st.sampled_from(
    [*FLAGS.split(), "bogus", "network_dim", "resume", "optimizer_args", "output_dir", "lr"]
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(SCRIPTS)), st.lists(st.tuples(NAMES, st.lists(VALUES, max_size=2)), max_size=6))
def test_every_flag_is_said_and_every_setting_reads_back(tmp_path_factory, script, flags):
    words = [word for name, values in flags for word in (f"--{name}", *values)]
    command = command_line.from_words(["accelerate", "launch", f"{script}.py", *words], SCRIPTS)
    started = tuple(launchers.lines_of(command.launcher, command.launcher_flags))
    lines = env_file.settle(
        lines_of(Source(script, SCRIPTS[script], command.flags, started, (), command.remarks))
    )
    text = env_file.render(script, lines)
    for flag in command.flags:
        assert f"--{flag.name}" in text
    path = tmp_path_factory.mktemp("env") / "job.env"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    given, problems, misread = sources.from_env_file(str(path))
    assert (problems, misread) == ([], [])
    assert [(each.name, each.text) for each in given] == [
        (line.name, line.value) for line in env_file.in_order(line for line in lines if line.name)
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("\\\n\"'$={}#|&;<> -\u200bab1"), max_size=60))
def test_any_text_is_a_command_or_refused(text):
    try:
        command_line.from_text(f"X=1\n{text}\npython train_db.py --a {shlex.quote(text)}", SCRIPTS)
    except JobError as error:
        assert all(problem.code == 64 for problem in error.problems)
