"""Tests of the limits of the machine: shared memory, open files, the port of the rendezvous."""

import socket
from types import SimpleNamespace
from typing import Any

from sdjob.model.pipeline import find_pipeline
from sdjob.settings.compatibility import Topology
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.preflight import system_limits
from tests.sdlaunch.test_plan import found, prepare
from tests.support.specs import spec

ONE_NODE = Cluster(1, 0, None, 2)


def job(model=None, **values) -> Any:
    """As much of a job as this looks at."""
    contents, topology = SimpleNamespace(model=model), Topology("cuda", 2, True, True)
    return SimpleNamespace(spec=spec(**values), cluster=ONE_NODE, contents=contents, topology=topology)


def test_shared_memory_is_compared_with_what_the_loaders_put_there(tmpfs):
    shm = tmpfs("64m")
    assert system_limits.shared_memory(job(), shm) == []
    (problem,) = system_limits.shared_memory(job(train_batch_size=32), shm)
    assert (problem.code, problem.subject) == (69, str(shm))
    # 2 processes × (2 loaders × 2 + 1) × 32 images of 3 × 512² bytes
    assert "67.1 MB free, 252 MB needed" in problem.found
    assert "--shm-size" in problem.remedy
    assert system_limits.shared_memory(job(train_batch_size=32, dataloader_num_workers=0), shm) == []


def test_cached_latents_need_less_shared_memory(eps_model, tmpfs):
    model = find_pipeline(eps_model, None, allow_pickle=False)
    shm = tmpfs("4m")
    given = {"train_batch_size": 4, "resolution": 256, "dataloader_num_workers": 1, "mixed_precision": "no"}
    # The tiny VAE has latents of 4 × 64² numbers: mean, logvar and two kinds of noise, instead of 3 × 256² bytes.
    (problem,) = system_limits.shared_memory(
        job(model, **given, train_text_encoder=True, noise_offset=0.1), shm
    )
    assert "× 1.31 MB" in problem.found
    cached = {"cache_latents": "memory", "center_crop": True, "cache_text_embeddings": "memory"}
    (problem,) = system_limits.shared_memory(job(model, **given, **cached), shm)
    assert "× 1.09 MB" in problem.found


def test_loader_processes_need_shared_memory(tmp_path):
    (problem,) = system_limits.shared_memory(job(), tmp_path / "none")
    assert problem.found == "does not exist; loader processes need it"
    assert (problem.code, problem.subject) == (69, f"{tmp_path}/none")
    assert "dataloader_num_workers=0" in problem.remedy
    assert system_limits.shared_memory(job(dataloader_num_workers=0), tmp_path / "none") == []


def test_shared_memory_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(system_limits.os, "access", lambda *_: False)
    (problem,) = system_limits.shared_memory(job(), tmp_path)
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
