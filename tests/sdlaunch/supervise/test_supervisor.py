"""Supervision: logs, the two-phase stop, exit codes from evidence, and nothing left running."""

import json
import re
import shutil
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from sdjob import protocol
from sdlaunch.settings import settings
from tests.sdlaunch.workspace import HOME, clean_environment
from tests.support import screen
from tests.support.launcher import DRIVER, PRELUDE, supervised

PROBLEM = {"subject": "row 3", "found": "no image", "remedy": "Take it out.", "code": 66}


@pytest.fixture
def run(tmp_path, workspace):
    return lambda script, **options: supervised(tmp_path, workspace, script, **options)


def noted(ended) -> list[str]:
    """The log of the node without its times."""
    return [line.partition(" ")[2] for line in ended.log.splitlines()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- ends --------------------------------------------------------------------------------------------


def test_a_run_that_finishes(run, tmp_path):
    (tmp_path / "output" / "run" / "notes-0").mkdir(parents=True)
    (tmp_path / "output" / "run" / "notes-0" / "rank-0.json").write_text('{"rank": 0, "code": 70}')
    (tmp_path / "output" / "run" / "stop-0").touch()
    (tmp_path / "output" / "failure.json").write_text("{}")
    (tmp_path / "output" / "mine.txt").write_text("mine")
    ended = run("assert not os.path.exists(stop_file) and not os.listdir(notes); say('[rank 0] hello')")
    assert "hello\n" in ended.end(0)
    assert not (ended.output / "failure.json").exists()
    assert (ended.output / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in (ended.output / "run").iterdir()) == [
        "environment.json",
        "plan.json",
        "report_data.js",
        "spec.yaml",
        "starts.json",
    ]


def test_a_device_without_memory_is_told_what_would_fit(run):
    ended = run("say('torch.OutOfMemoryError: CUDA out of memory. Tried'); sys.exit(1)")
    text = ended.end(71)
    assert ended.failure["remedy"].startswith("Settings that need clearly less: gradient_checkpointing=1")
    assert ended.failure["remedy"] in text


def test_the_first_failing_rank_gives_the_code(run):
    ended = run(
        f"note(1, 66, problems=[{PROBLEM!r}], error='BadRow()', traceback='Traceback …'); time.sleep(0.05)\n"
        "note(0, 70, error='lost peer'); sys.exit(1)"
    )
    text = ended.end(66)
    assert "row 3: no image" in text
    assert "Take it out." in text
    failure = ended.failure
    assert (failure["class"], failure["code"], failure["root_rank"], failure["step"]) == (
        "bad input",
        66,
        1,
        7,
    )
    assert (failure["evidence"], failure["problems"]) == (["BadRow()"], [PROBLEM])
    assert failure["traceback"] == "Traceback …"


def test_a_problem_that_all_ranks_share_needs_no_failing_process(run):
    ended = run(f"note(0, 64, problems=[{PROBLEM!r}]); note(1, 64, problems=[{PROBLEM!r}])")
    ended.end(64)


ROOT_CAUSE = """
print('Traceback (most recent call last):', file=sys.stderr)
print('Root Cause (first observed failure):\\n[0]:\\n  time : x\\n  rank      : 1 (local_rank: 1)\\n'
      '  exitcode  : {code} (pid: 5)\\n', file=sys.stderr, flush=True)
sys.exit(1)
"""


def test_a_rank_that_was_killed_is_the_cause_whatever_its_peers_say(run):
    ended = run("note(0, 70, error='connection closed by peer')" + ROOT_CAUSE.format(code=-9))
    text = ended.end(70)
    assert "rank 1 was killed by SIGKILL" in text
    assert ended.failure["root_rank"] == 1


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", 71, "out of memory"),
        ("OSError: [Errno 28] No space left on device", 73, "output cannot hold the result"),
        ("Segmentation fault", 70, "training failed"),
    ],
)
def test_without_notes_the_log_tells(run, line, code, kind):
    ended = run(f"beat(1, step=12); beat(0, step=11); say({line!r})" + ROOT_CAUSE.format(code=1))
    ended.end(code)
    assert (ended.failure["class"], ended.failure["step"], ended.failure["root_rank"]) == (kind, 12, 1)


def test_half_a_note_is_none(run):
    ended = run("open(f'{notes}/rank-0.json', 'w').write('{\"rank\": 0, \"co'); sys.exit(3)")
    ended.end(70)
    assert "exit status 3" in ended.failure["evidence"][0]


# --- stops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", protocol.STOP_SIGNALS)
def test_a_first_signal_asks_the_workers_to_save(run, signum):
    started = run("say('[rank 0] ready'); assert asked(); note(0, 75); say('[rank 0] saved')")
    started.until("ready")
    started.process.send_signal(signum)
    text = started.end(75)
    assert signal.Signals(signum).name in text
    assert "the workers saved and ended" in text
    assert not (started.output / "failure.json").exists()
    assert not (started.output / "run" / "stop-0").exists()


def test_workers_that_were_stopped_without_the_launcher_are_75_too(run):
    run("note(0, 75); note(1, 75)").end(75)


def test_a_run_that_finishes_while_it_is_asked_to_stop_is_finished(run):
    started = run("say('[rank 0] ready'); assert asked()")
    started.until("ready")
    started.process.terminate()
    started.end(0)


def test_after_the_grace_time_the_processes_are_ended(run):
    script = """
def ended(*_):
    note(0, 70, error='ended'); sys.exit(1)
signal.signal(signal.SIGTERM, ended)
say('[rank 0] ready'); time.sleep(60)
"""
    started = run(script, stop_grace="0.3")
    started.until("ready")
    started.process.terminate()
    assert "ended before they had saved" in started.end(75)
    assert not (started.output / "failure.json").exists()


def test_processes_that_ignore_sigterm_are_killed_with_their_children(run):
    script = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)
say(f'[rank 0] ready {child.pid} {os.getpid()}'); time.sleep(60)
"""
    started = run(script, stop_grace="0")
    assert started.process.stdout
    pids = next(line for line in started.process.stdout if "ready" in line).split()[1:]
    started.process.terminate()
    started.end(75)
    assert not any(alive(int(pid)) for pid in pids)


def test_a_repeated_sigint_ends_everything_at_once(run):
    script = """
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)
say(f'[rank 0] ready {child.pid} {os.getpid()}'); time.sleep(60)
"""
    started = run(script, ONE_REQUEST="0.2")
    assert started.process.stdout
    pids = next(line for line in started.process.stdout if "ready" in line).split()[1:]
    started.process.send_signal(signal.SIGINT)
    assert "Ctrl-C again, after 0.2 s, stops at once" in started.until("saving and stopping")
    begin = time.monotonic()
    time.sleep(0.3)
    started.process.send_signal(signal.SIGINT)
    started.end(130)
    assert time.monotonic() - begin < 25  # of a grace time of 25 and a sleep of 60
    assert not any(alive(int(pid)) for pid in pids)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (signal.SIGUSR1, [signal.SIGTERM]),
        (signal.SIGTERM, [signal.SIGTERM, signal.SIGINT]),
        (signal.SIGINT, [signal.SIGTERM, signal.SIGHUP]),
    ],
)
def test_several_signals_are_one_request(run, first, later):
    """As schedulers send them, seconds apart; a terminal that closes is followed by the shell's own SIGHUP."""
    started = run("say('[rank 0] ready'); assert asked(); time.sleep(0.8); note(0, 75)", ONE_REQUEST="0.1")
    started.until("ready")
    started.process.send_signal(first)
    started.until("saving and stopping")
    for number in later:
        time.sleep(0.2)
        started.process.send_signal(number)
    assert "the workers saved and ended" in started.end(75)


def test_two_sigints_that_come_together_are_one_request(run):
    """`timeout --foreground`, a shell and a terminal signal a process directly and through its group."""
    started = run("say('[rank 0] ready'); assert asked(); time.sleep(0.3); note(0, 75)")
    started.until("ready")
    started.process.send_signal(signal.SIGINT)
    started.until("saving and stopping")
    started.process.send_signal(signal.SIGINT)
    assert "the workers saved and ended" in started.end(75)


def test_a_launcher_that_is_killed_takes_torchrun_along(run):
    """The launcher is not PID 1 here, and its torchrun becomes the child of another process."""
    script = """
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), os._exit(1)))
say(f'[rank 0] ready {child.pid} {os.getpid()}'); time.sleep(60)
"""
    started = run(script)
    assert started.process.stdout
    pids = next(line for line in started.process.stdout if "ready" in line).split()[1:]
    started.process.kill()
    until = time.monotonic() + 10
    while any(alive(int(pid)) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(alive(int(pid)) for pid in pids)


def test_workers_do_not_outlive_a_torchrun_that_was_killed(run):
    script = """
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)
say(f'[rank 0] ready {child.pid}'); os.kill(os.getpid(), signal.SIGKILL)
"""
    started = run(script, stop_grace="0.5")
    assert started.process.stdout
    (pid,) = next(line for line in started.process.stdout if "ready" in line).split()[1:]
    started.end(70)
    assert "SIGKILL" in started.failure["evidence"][0]
    assert not alive(int(pid))


def test_ranks_of_a_torchrun_that_was_killed_may_save(run):
    script = """
if os.fork():
    say('[rank 0] ready'); os.kill(os.getpid(), signal.SIGKILL)
while os.getppid() not in (1, int(os.environ['SDJOB_LAUNCHER_PID'])):
    time.sleep(0.01)
time.sleep(0.3); note(0, 75)
"""
    assert "the workers saved and ended" in run(script).end(75)


def test_a_job_whose_output_folder_is_removed_ends_and_leaves_it_alone(run, tmp_path):
    started = run("say('[rank 0] ready'); time.sleep(300)", BEAT="0.1")
    started.until("ready")
    shutil.rmtree(started.output)
    text = started.end(73)
    assert f"OUTPUT_DIR: {started.output} was removed, unmounted or replaced while the job ran" in text
    assert '"class": "output cannot hold the result"' in text
    assert not started.output.exists()


# --- what people see, and what is kept ---------------------------------------------------------------


def test_people_see_the_workers_and_the_log_has_everything(run):
    script = """
say('[rank 0] first'); say('[rank 1] second'); say('W1121 torchrun talks'); say('Traceback (most recent')
"""
    ended = run(script)
    text = ended.end(0)
    assert text.splitlines()[:-1] == ["first", "[rank 1] second"]
    ranks, torchrun = (
        ["[rank 0] first", "[rank 1] second"],
        ["W1121 torchrun talks", "Traceback (most recent"],
    )
    last = noted(ended)[-5:]  # torchrun has a pipe of its own
    assert [line for line in last if line in ranks] == ranks
    assert [line for line in last if line in torchrun] == torchrun
    logs = [(ended.output / "logs" / "node-0" / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    assert [[line.partition(" ")[2] for line in log.splitlines()] for log in logs] == [
        ["==== start ====", "first"],
        ["==== start ====", "second"],
    ]


def test_a_traceback_of_a_worker_is_for_the_log(run):
    lines = [
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in f',
        "    f()",
        "",
        "OSError: gone",
    ]
    ended = run(f"for line in {lines!r}: say('[rank 1] ' + line)\nsay('[rank 0] on')\nsay('[rank 1] on')")
    assert ended.end(0).splitlines()[:-1] == ["[rank 1] OSError: gone", "on", "[rank 1] on"]
    assert noted(ended)[-8:-1] == [*(f"[rank 1] {line}" for line in lines), "[rank 0] on", "[rank 1] on"]


def test_a_second_run_keeps_the_log_of_the_first(run):
    run("say('[rank 0] one')").end(0)
    again = run("say('[rank 0] two')")
    again.end(0)
    lines = noted(again)
    second = lines.index("==== start of node 0 of 1 ====", 1)
    assert (lines[0], lines[second - 2], lines[-2]) == (lines[second], "[rank 0] one", "[rank 0] two")
    begun = [line.partition(":")[0] for line in lines[second + 1 : -2]]
    assert {"model", "dataset", "batch", "length"} <= set(begun)


def test_every_line_of_the_log_has_its_time(run):
    ended = run("say('[rank 0] one'); note(0, 70, error='a b'); sys.exit(1)")
    before = time.time()
    ended.end(70)
    times = [datetime.strptime(line.split(" ")[0], "%Y-%m-%dT%H:%M:%S%z") for line in ended.log.splitlines()]
    assert len(times) > 8  # the verdict of several lines among them
    assert all(before - 60 < each.timestamp() < before + 60 for each in times)


STAGES = """
for stage, done, total in (("load", 1, 3), ("train", 9, 9), ("save", None, None)):
    step = 9 if stage != "load" else None
    protocol.Heartbeat(os.getpid(), stage, step, done, total).write(protocol.notes_folder(os.environ), 0)
    say("[rank 0] " + protocol.progress_line(f"{stage} {done}/{total}"))
    time.sleep(1.2)  # longer than what leaves no line
say("[rank 0] saved")
"""


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_on_a_terminal_a_bar_takes_the_place_of_lines_of_progress(term, tmp_path, workspace):
    (tmp_path / "fake.py").write_text(PRELUDE + STAGES.replace("1.2", "1.2" if term == "xterm" else "0"))
    argv, environ = [*DRIVER, str(tmp_path / "fake.py")], clean_environment(**workspace, TERM=term)
    code, written = screen.of_program(argv, env=environ)
    bars = [r"✓  load  3/3  0:00:\d\d", r"✓  train  9/9  0:00:\d\d"]
    expected = bars if term == "xterm" else ["load 1/3", "train 9/9", "save None/None"]
    output = tmp_path / "output"
    last = f"result: {output / 'checkpoint'}; open {output / 'report.html'}"
    assert code == 0
    for line, pattern in zip(screen.lines(written), [*expected, "saved", re.escape(last), ""], strict=True):
        assert re.fullmatch(pattern, line)
    assert ("\x1b" in written) == (term == "xterm")


def test_secrets_appear_nowhere(run):
    script = "say('[rank 0] using ' + os.environ['HF_TOKEN'] + ' at https://me:pa55word@host/'); sys.exit(1)"
    ended = run(script, HF_TOKEN="hf_abcdefgh123", WANDB_API_KEY="k", PLAIN="plain")
    text = ended.end(70)
    written = "".join(path.read_text() for path in ended.output.rglob("*") if path.is_file())
    for secret in ("hf_abcdefgh123", "pa55word", '"k"'):
        assert secret not in text + written
    assert "[redacted]" in text
    facts = json.loads((ended.output / "run" / "environment.json").read_text())
    assert {"HF_TOKEN", "WANDB_API_KEY", "PLAIN"} < {*facts["other_variables"]}
    assert facts["environment"]["OUTPUT_DIR"] == str(ended.output)
    assert facts["packages"]["numpy"]


def test_spec_yaml_replays_the_run(run, workspace):
    started = run(
        "print(json.dumps(sys.argv[1:]))", instance_prompt="no: it's #1\n$x", epoch="3", NPROC_PER_NODE="2"
    )
    started.end(0)
    replayed = settings.read([("config_file", str(started.output / "run" / "spec.yaml"))], {})
    assert replayed.problems == ()
    assert replayed.spec.instance_prompt == "no: it's #1\n$x"
    assert (replayed.spec.num_train_epochs, "num_train_step" in replayed.given) == (3, False)
    printed = json.loads((started.output / "run" / "plan.json").read_text())
    again = subprocess.run(
        [
            "bash",
            str(HOME / "train.sh"),
            "plan",
            "--json",
            f"--config-file={started.output / 'run' / 'spec.yaml'}",
        ],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(again.stdout)["settings"]["num_train_step"]["value"] == 8
    assert json.loads(again.stdout)["argv"][3:] == printed["argv"][2:]  # without torchrun, and its stand-in


def test_an_output_folder_that_fails_at_the_start_is_73(tmp_path, workspace):
    in_the_way = tmp_path / "output" / "run" / "plan.json"
    in_the_way.mkdir(parents=True)
    (tmp_path / "fake.py").write_text("raise SystemExit('started')")
    done = subprocess.run(
        [*DRIVER, str(tmp_path / "fake.py")],
        env=clean_environment(**workspace),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 73
    assert "OUTPUT_DIR" in done.stderr
    assert in_the_way.is_dir()


# --- the real torchrun -------------------------------------------------------------------------------

WORKER = """
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
say("step    3/400  loss 0.1")
say(sys.argv[-1])
time.sleep(60)
"""


def test_a_rank_of_the_real_torchrun_is_killed(run):
    ended = run(WORKER, as_worker=True, NPROC_PER_NODE="2", PET_STANDALONE="", PET_NNODES="")
    text = ended.end(70)
    assert "SIGKILL" in ended.failure["evidence"][0], text
    assert ended.failure["root_rank"] == 1
    assert "Traceback" in ended.log


def test_what_the_workers_of_the_real_torchrun_say_and_that_it_survives_signals_to_all_processes(run):
    """SLURM signals every process of a job step; torchrun would die of these signals and leave its ranks."""
    worker = """
if os.environ["RANK"] == "0":
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getppid(), number)
say('hello'); say(sys.argv[-1])
"""
    ended = run(worker, as_worker=True, NPROC_PER_NODE="2", PET_STANDALONE="")
    assert sorted(ended.end(0).splitlines()[:-1]) == [
        "--device=cpu",
        "[rank 1] --device=cpu",
        "[rank 1] hello",
        "hello",
    ]
