"""failure.json: of a job that was refused, and of several nodes that end in one folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sdjob.output.layout import OutputLayout
from sdjob.problems import bad_input
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.supervise import failure_report
from sdlaunch.supervise.verdict import Verdict
from tests.sdlaunch.workspace import launch
from tests.support.launcher import supervised
from tests.support.worker import free_port

ECHO = Verdict(
    70, ("RuntimeError('connection closed by peer')",), "", 0, 3, special="bug or lost peer", time=1
)
KILLED = Verdict(70, ("rank 5 was killed",), "", 5, 3, special="killed from outside", time=2)
HANG = Verdict(70, ("no progress",), "", None, special="hang", time=0)  # on a node whose ranks all wait
PROBLEM = bad_input("row 3", "no image", "Take it out.")
BAD_ROW = Verdict(66, ("row 3: no image",), "", 9, 3, problems=(PROBLEM,), time=3)
FINISHED = Verdict(0, (), "")


def nodes(count: int) -> list[Cluster]:
    return [Cluster(count, node, "node-0:29400", 4) for node in range(count)]


def read(layout: OutputLayout):
    return json.loads(layout.failure.read_text())


@pytest.fixture
def layout(tmp_path):
    return OutputLayout(tmp_path / "output")


@pytest.mark.parametrize(
    ("verdicts", "node"),
    [
        ([ECHO, KILLED, BAD_ROW], 1),
        ([ECHO, BAD_ROW, ECHO], 1),
        ([BAD_ROW, KILLED, ECHO], 1),  # of two causes the earlier one
        ([ECHO, Verdict(70, (), "", 2, time=0.5), ECHO], 1),
        ([HANG, ECHO, KILLED], 2),
        ([Verdict(71, (), "", None, time=9), ECHO, ECHO], 0),
        ([HANG, replace(HANG, root_rank=6, time=5), replace(HANG, time=3)], 1),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_node_that_names_the_cause_is_repeated_in_any_order_of_reports(layout, verdicts, node, order):
    clusters = nodes(3)
    for each in order:
        failure_report.record(layout, clusters[each], verdicts[each], ())
    said = read(layout)
    assert (said["node"], said["class"], said["code"]) == (
        node,
        verdicts[node].failure_class,
        verdicts[node].code,
    )
    assert {each["node"] for each in said["other_nodes"]} == {0, 1, 2} - {node}


def test_a_node_removes_only_its_own_report(layout):
    zero, one = nodes(2)
    failure_report.record(layout, zero, BAD_ROW, ())
    failure_report.record(layout, one, KILLED, ())
    failure_report.clear(layout, zero)
    assert (read(layout)["node"], read(layout)["other_nodes"]) == (1, [])
    failure_report.record(layout, one, FINISHED, ())
    assert not layout.failure.exists()
    assert list(layout.run.iterdir()) == []


def test_reports_of_nodes_that_the_job_no_longer_has_are_removed(layout):
    for cluster in nodes(3):
        failure_report.record(layout, cluster, KILLED, ())
    failure_report.clear(layout, nodes(1)[0])
    assert not layout.failure.exists()
    assert list(layout.run.iterdir()) == []


def test_a_damaged_report_is_ignored(layout):
    layout.run.mkdir(parents=True)
    (layout.run / "failure-1.json").write_text('{"node": 1, "cl')
    failure_report.record(layout, nodes(2)[0], KILLED, ())
    assert (read(layout)["node"], read(layout)["other_nodes"]) == (0, [])


WHOLE = {
    "node": 1,
    "code": 70,
    "class": "hang",
    "root_rank": None,
    "time": "1",
    "evidence": [],
    "remedy": "",
    "problems": [],
}


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("failure-1.json", {"node": 1}),
        ("failure-0001x.json", WHOLE),
        ("failure-1.json", {**WHOLE, "node": 0}),  # under the name of another node
        ("failure-1.json", {**WHOLE, "code": 0}),  # of a job that has failed
        ("failure-1.json", {**WHOLE, "time": 5}),  # which has no order among times that are texts
        ("failure-1.json", {**WHOLE, "evidence": [1]}),
        ("failure-7.json", {"node": 0}),
    ],
)
def test_a_report_that_no_node_writes_is_ignored(layout, name, report):
    layout.run.mkdir(parents=True)
    (layout.run / name).write_text(json.dumps(report))
    failure_report.record(layout, nodes(2)[0], KILLED, ())
    assert (read(layout)["node"], read(layout)["other_nodes"]) == (0, [])


@pytest.mark.parametrize("more", [float("nan"), [[]]])
def test_what_others_add_to_a_report_is_left_out(layout, more):
    """NaN differs from itself: the reports would have changed at each look, without end."""
    layout.run.mkdir(parents=True)
    (layout.run / "failure-1.json").write_text(json.dumps({**WHOLE, "more": more}))
    failure_report.clear(layout, nodes(2)[0])
    assert read(layout) == {**WHOLE, "other_nodes": []}


# --- jobs that are refused ---------------------------------------------------------------------------


def test_a_refused_job_leaves_its_problems(workspace, tmp_path):
    done = launch(**workspace, lr="-1", batch_size="x", MY_TOKEN="hf_abcdefgh", dataset_name="hf_abcdefgh")
    assert done.returncode == 64
    text = (tmp_path / "output" / "failure.json").read_text()
    said = json.loads(text)
    assert (said["class"], said["code"], said["node"]) == ("bad setting", 64, 0)
    assert (said["root_rank"], said["step"], said["traceback"]) == (None, None, None)
    assert [problem["subject"] for problem in said["problems"]][:2] == ["batch_size", "lr"]
    assert 66 in {problem["code"] for problem in said["problems"]}
    assert said["remedy"] == said["problems"][0]["remedy"]
    assert "hf_abcdefgh" not in text


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"DATASET_DIR": "/nonexistent"}, "bad input"),
        ({"device": "cuda", "NPROC_PER_NODE": "99"}, "hardware does not fit"),
    ],
)
def test_the_class_is_that_of_the_code(workspace, tmp_path, variables, kind):
    launch(**{**workspace, **variables})
    assert json.loads((tmp_path / "output" / "failure.json").read_text())["class"] == kind


@pytest.mark.parametrize("verb", ["plan", "check"])
def test_plan_and_check_write_nothing(workspace, tmp_path, verb):
    assert launch(verb, **workspace, lr="-1").returncode == 64
    assert not (tmp_path / "output").exists()


def test_nothing_is_written_among_the_inputs(workspace, tmp_path):
    workspace["OUTPUT_DIR"] = workspace["DATASET_DIR"]
    assert launch(**workspace).returncode == 64
    assert not list(Path(workspace["DATASET_DIR"]).rglob("failure*"))


def test_the_next_good_run_removes_it_at_the_start(workspace, tmp_path):
    launch(**workspace, lr="-1")
    assert (tmp_path / "output" / "failure.json").exists()
    run = supervised(
        tmp_path, workspace, "assert not os.path.exists(f'{notes}/../../failure.json'); say('[rank 0] in')"
    )
    assert run.end(0).startswith("in\nresult: ")
    assert not (tmp_path / "output" / "failure.json").exists()


# --- two nodes ---------------------------------------------------------------------------------------

# On node 1, which knocks first, an image is bad; node 0 notices a moment earlier that its peer has gone.
TWO = """
node = int(os.environ["SDJOB_STOP_FILE"][-1])
say(f'[rank {node}] ready')
if node == 0:
    import socket
    socket.create_server(("127.0.0.1", int(os.environ["MASTER_PORT"]))).accept()
    note(0, 70, error="connection closed by peer"); time.sleep(1)
else:
    time.sleep(0.3); note(1, 66, problems=[PROBLEM])
sys.exit(1)
""".replace("PROBLEM", repr(PROBLEM.to_dict()))


def test_two_launchers_in_one_folder_name_the_cause(workspace, tmp_path):
    there = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    zero, one = (supervised(tmp_path, workspace, TWO, NODE_RANK=str(node), **there) for node in (0, 1))
    one.end(66)
    assert "node 1 failed, and this node with it: row 3: no image" in zero.end(66)
    said = zero.failure
    assert (said["node"], said["class"], said["root_rank"]) == (1, "bad input", 1)
    assert [(each["node"], each["class"]) for each in said["other_nodes"]] == [(0, "bad input")]
    logs = {
        str(path.relative_to(tmp_path / "output" / "logs"))
        for path in (tmp_path / "output" / "logs").rglob("*.log")
    }
    assert logs == {"node-0.log", "node-1.log", "node-0/rank-0.log", "node-1/rank-1.log"}
