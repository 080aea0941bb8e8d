"""One job in one output folder; its nodes share it, and the lock of a dead job does not block the next for long."""

import dataclasses
import fcntl
import itertools
import json
import os
import signal
import subprocess
import threading
import time

import pytest

from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError
from sdjob.protocol import Channel
from sdjob.writing import LinkError
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.supervise import lock
from tests.sdlaunch.workspace import launch, plan_json
from tests.support.launcher import supervised

ALONE = Cluster(1, 0, None, 2)
NODES = [Cluster(2, node, "node-0:29400", 2) for node in (0, 1)]


@pytest.fixture
def layout(tmp_path):
    return OutputLayout(tmp_path / "output")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, seconds in {"BEAT": 0.1, "SILENCE": 0.5, "PATIENCE": 1.0, "_POLL": 0.02}.items():
        monkeypatch.setattr(lock, name, seconds)


def held(layout, cluster=ALONE):
    return lock.held(layout, cluster, lambda text: None)


def refused(layout, cluster=ALONE) -> str:
    with pytest.raises(JobError) as error, held(layout, cluster):
        pass
    (problem,) = error.value.problems
    assert (problem.code, problem.subject) == (73, "OUTPUT_DIR")
    return problem.found


def left(layout, cluster=ALONE, **changes):
    """The file of a job that is no more, such as one on a machine that was lost."""
    layout.run.mkdir(parents=True, exist_ok=True)
    holder = dataclasses.replace(lock.Holder.of_this(cluster), **changes)
    (layout.run / f"lock-{holder.node}").write_text(json.dumps(dataclasses.asdict(holder)))


def files(layout):
    return sorted(path.name for path in layout.run.iterdir())


def test_a_second_job_is_told_who_is_at_work(layout):
    with held(layout):
        found = refused(layout)
        assert f"{layout.root} is in use by a job on {os.uname().nodename} (process {os.getpid()}" in found
        assert lock.in_use(layout, ALONE)[0].found == found
        assert files(layout) == ["lock-0"]
    assert files(layout) == []
    assert lock.in_use(layout, ALONE) == []
    with held(layout):
        pass


def test_a_lock_that_is_a_link_is_neither_read_nor_written(layout, tmp_path):
    (tmp_path / "mine").write_text("mine")
    layout.run.mkdir(parents=True)
    layout.lock(0).symlink_to(tmp_path / "mine")
    with pytest.raises(LinkError, match="lock-0"), held(layout):
        pass
    layout.lock(0).unlink()
    layout.lock(7).symlink_to(tmp_path / "mine")
    assert lock.in_use(layout, ALONE) == []
    assert (tmp_path / "mine").read_text() == "mine"


def test_nodes_of_one_job_share_the_folder(layout):
    with held(layout, NODES[0]), held(layout, NODES[1]):
        assert files(layout) == ["lock-0", "lock-1"]
        assert len(lock.in_use(layout, NODES[1])) == 1  # node 1 is here already
        refused(layout, NODES[0])
        refused(layout, NODES[1])
        assert files(layout) == ["lock-0", "lock-1"]


def test_nodes_that_come_at_once_after_a_crash_of_another_job(layout):
    for node in range(4):
        left(layout, Cluster(4, node, "old:1", 2))
    failed, both = [], threading.Barrier(2, timeout=10)

    def node(cluster):
        try:
            with held(layout, cluster):
                both.wait()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=node, args=(cluster,)) for cluster in NODES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert files(layout) == []


@pytest.mark.parametrize(("first", "second"), [(NODES[1], ALONE), (ALONE, NODES[1])])
def test_another_job_is_noticed_on_whatever_node_it_is(layout, first, second):
    with held(layout, first):
        refused(layout, second)
        assert files(layout) == [f"lock-{first.node_rank}"]


def test_the_lock_of_a_killed_job_on_this_machine_does_not_block_the_next(layout):
    left(layout, pid=1)
    begin = time.monotonic()
    with held(layout):
        assert time.monotonic() - begin < 0.3


def test_a_job_on_a_machine_that_was_lost_is_waited_for_and_no_longer(layout):
    left(layout, machine="another")
    said = []
    begin = time.monotonic()
    with lock.held(layout, ALONE, said.append):
        assert 0.5 <= time.monotonic() - begin < 2
        assert json.loads((layout.run / "lock-0").read_text())["pid"] == os.getpid()


def test_files_of_many_lost_machines_are_waited_for_at_once(layout):
    for node in range(1, 20):
        left(layout, machine="another", node=node, job="x")
    begin = time.monotonic()
    with held(layout):
        assert 0.5 <= time.monotonic() - begin < 3
        assert files(layout) == ["lock-0"]


def test_what_a_file_says_is_shown_escaped_and_not_in_full(layout):
    left(layout, machine="another", host="\x1b[2J" * 1000, since="\u202e")
    text = str(lock.Holder.read(layout.lock(0)))
    assert text.isprintable() and len(text) < 1000


def test_of_many_the_one_that_is_alive_is_named(layout):
    for node in range(1, 9):
        left(layout, machine="another", node=node, job="x", host=f"host-{node}")
    alive, ended = layout.run / "lock-8", threading.Event()

    def renew():
        while not ended.wait(0.1):
            os.utime(alive)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        assert "host-8" in refused(layout)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("change", [{"node": [1]}, {"host": {}}, {"pid": "x"}, {"job": None}])
def test_a_file_that_no_launcher_writes_is_no_holder(layout, change):
    left(layout, NODES[1])
    path = layout.run / "lock-1"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert lock.Holder.read(path) is None
    assert lock.hosts_of_nodes(layout, NODES[0]) == {}
    with held(layout):
        pass


@pytest.fixture
def without_locks(monkeypatch):
    def unknown(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)


def test_a_folder_that_is_removed_or_replaced_is_lost(layout):
    for replaced in (False, True):
        with held(layout) as mine:
            assert not mine.lost.wait(0.3)
            mine.path.unlink()
            if replaced:
                mine.path.touch()
            assert mine.lost.wait(10) and mine.is_gone()
        assert mine.path.exists() == replaced  # that of another job is left alone
        mine.path.unlink(missing_ok=True)


def test_without_locks_the_signs_of_life_count(layout, without_locks):
    with held(layout):
        refused(layout)
        refused(layout, NODES[1])
        assert lock.in_use(layout, ALONE) == []  # cannot be told without waiting
    left(layout)
    with held(layout):
        pass


def test_without_locks_one_of_two_that_come_at_once_is_refused(layout, without_locks, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.1)
    monkeypatch.setattr(lock, "SILENCE", 5.0)
    number, this = itertools.count(), lock.Holder.of_this
    monkeypatch.setattr(
        lock.Holder, "of_this", lambda cluster: dataclasses.replace(this(cluster), pid=next(number))
    )
    ended, both, one_is_refused = [], threading.Barrier(2, timeout=10), threading.Event()

    def job():
        both.wait()
        try:
            with held(layout):
                one_is_refused.wait(10)
            ended.append("finished")
        except JobError:
            ended.append("refused")
            one_is_refused.set()

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["finished", "refused"]


def test_a_lock_of_a_lost_machine_that_the_server_keeps_is_passed_by(layout):
    left(layout, machine="another")
    with (layout.run / "lock-0").open() as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        begin = time.monotonic()
        with held(layout):
            assert time.monotonic() - begin >= 1.0
            assert json.loads((layout.run / "lock-0").read_text())["pid"] == os.getpid()
        fcntl.flock(theirs, fcntl.LOCK_UN)


# --- launchers ---------------------------------------------------------------------------------------


def test_a_second_launcher_is_refused_and_leaves_the_first_alone(workspace, tmp_path):
    first = supervised(tmp_path, workspace, "say('[rank 0] ready'); assert asked(); note(0, 75)")
    first.until("ready")
    second = launch(**workspace)
    assert second.returncode == 73
    assert f"process {first.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    wrong = launch(**workspace, lr="-1")
    assert wrong.returncode == 64
    assert "is in use" in wrong.stderr
    assert not (tmp_path / "output" / "failure.json").exists()
    code, printed = plan_json(**workspace)
    assert (code, [problem["subject"] for problem in printed["problems"]]) == (73, ["OUTPUT_DIR"])
    first.process.terminate()
    first.end(75)


def test_after_kill_9_the_workers_end_and_the_next_start_waits_for_that(workspace, tmp_path):
    script = """
def ended(*_):
    while not os.path.exists(f"{notes}/../../go"):
        time.sleep(0.01)
    open(f"{notes}/../../saved", "w").close(); sys.exit(0)
signal.signal(signal.SIGTERM, ended)
say('[rank 0] ready'); time.sleep(60)
"""
    first = supervised(tmp_path, workspace, script)
    first.until("ready")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(10)
    second = supervised(tmp_path, workspace, "assert os.path.exists(f'{notes}/../../saved')")
    second.until("may still be ending")
    (tmp_path / "output" / "go").touch()
    second.end(0)
    first.process.communicate()


def test_ranks_that_a_killed_start_has_left_are_waited_for_and_named(layout):
    """Their launcher and torchrun were killed, and the lock with them."""
    environ = {**os.environ, **Channel.of_node(layout.run, 0).environment()}
    said = []
    with subprocess.Popen(["sleep", "60"], env=environ) as rank:
        try:
            assert str(rank.pid) in refused(layout)
            with held(layout, NODES[1]):  # of another node, which may be on the same machine
                pass
            threading.Timer(0.3, rank.kill).start()
            with lock.held(layout, ALONE, said.append):
                assert rank.wait() == -signal.SIGKILL
        finally:
            rank.kill()
    assert said == [
        f"waiting for processes of an earlier start that may still be saving in {layout.root}: {rank.pid}"
    ]
