"""Tests of the limits of the machine: shared memory, open files, the port of the rendezvous."""

import socket

from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.preflight import system_limits
from tests.sdlaunch.test_plan import found, prepare

ONE_NODE = Cluster(1, 0, None, 2)


def spec(**values) -> RunSpec:
    return RunSpec(pretrained_model_name_or_path="m", output_dir="o", **values)


def test_shared_memory_is_compared_with_what_the_loaders_put_there(tmpfs):
    shm = tmpfs("64m")
    assert system_limits.shared_memory(spec(), ONE_NODE, shm) == []
    (problem,) = system_limits.shared_memory(spec(train_batch_size=8), ONE_NODE, shm)
    assert (problem.code, problem.subject) == (69, str(shm))
    # 2 processes × (2 loaders × 2 + 1) × 8 images of 3 × 512² fp32 numbers
    assert "67.1 MB free, 252 MB needed" in problem.found
    assert "--shm-size" in problem.remedy
    assert (
        system_limits.shared_memory(spec(train_batch_size=8, dataloader_num_workers=0), ONE_NODE, shm) == []
    )


def test_loader_processes_need_shared_memory(tmp_path):
    (problem,) = system_limits.shared_memory(spec(), ONE_NODE, tmp_path / "none")
    assert problem.found == "does not exist; loader processes need it"
    assert (problem.code, problem.subject) == (69, f"{tmp_path}/none")
    assert "dataloader_num_workers=0" in problem.remedy
    assert system_limits.shared_memory(spec(dataloader_num_workers=0), ONE_NODE, tmp_path / "none") == []


def test_shared_memory_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(system_limits.os, "access", lambda *_: False)
    (problem,) = system_limits.shared_memory(spec(), ONE_NODE, tmp_path)
    assert problem.found == "cannot be written; loader processes need it"


def test_a_container_without_proc(tmp_path):
    assert system_limits.proc() == []
    (problem,) = system_limits.proc(tmp_path)
    assert (problem.code, problem.found) == (69, "not mounted")


def test_the_limit_of_open_files():
    assert system_limits.open_files(spec(), ONE_NODE, 1024) == []
    (problem,) = system_limits.open_files(spec(dataloader_num_workers=64), ONE_NODE, 1024)
    assert problem.code == 69
    assert "ulimit -n 4096" in problem.remedy
    assert system_limits.open_files(spec(dataloader_num_workers=64), ONE_NODE, -1) == []


def test_the_port_of_the_rendezvous_must_be_free_on_node_0_only(workspace):
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        nodes = {"NNODES": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        assert found(prepare(workspace, **nodes, NODE_RANK="0")) == [("MASTER_PORT", 69)]
        assert found(prepare(workspace, **nodes, NODE_RANK="1")) == []
    assert found(prepare(workspace, **nodes, NODE_RANK="0")) == []
