import pytest

from sdjob.automatic import Choice
from sdlaunch.cluster import sharing
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.settings.options import LaunchOptions


def test_nodes_numactl_and_this_pytorch_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing.shutil, "which", lambda name: f"/usr/bin/{name}")
    for name in ("node0", "node1", "possible"):
        (tmp_path / "sys/devices/system/node" / name).mkdir(parents=True)
    torch = tmp_path / "torch"
    assert sharing.numa_binding("cuda", tmp_path, torch).value == ""
    (torch / "numa").mkdir(parents=True)
    (torch / "numa/binding.py").touch()
    assert sharing.numa_binding("cuda", tmp_path, torch).value == "node"
    assert sharing.numa_binding("cpu", tmp_path, torch).value == ""
    assert (
        sharing.numa_binding("cuda", tmp_path / "elsewhere", torch).reason == "the machine is one NUMA node"
    )
    monkeypatch.setattr(sharing.shutil, "which", lambda name: None)
    assert sharing.numa_binding("cuda", tmp_path, torch).reason == "numactl is not installed"


def test_the_installed_pytorch_can_bind(tmp_path):
    for name in ("node0", "node1"):
        (tmp_path / "sys/devices/system/node" / name).mkdir(parents=True)
    assert sharing.numa_binding("cuda", tmp_path).reason in ("2 NUMA nodes", "numactl is not installed")


def test_the_plan_has_the_reasons(monkeypatch):
    found, two = Devices("cuda", 2, 64, ""), Cluster(1, 0, None, 2)
    monkeypatch.setattr(sharing, "numa_binding", lambda device: Choice("", "one"))
    assert list(sharing.lines(found, two, LaunchOptions(), {})) == [
        "processes: threads of each 8 (64 cores / 2 processes, at most 8); not bound (one)",
        "waiting: NCCL gives up after 900 s (300 s after hang_timeout), gloo after 2 h",
    ]
    (line,) = sharing.lines(Devices("cpu", 4, 4, ""), two, LaunchOptions(), {"OMP_NUM_THREADS": "3"})
    assert line.startswith("processes: threads of each 3 (OMP_NUM_THREADS); not bound")


@pytest.mark.parametrize(
    ("cores", "count", "threads", "reason"),
    [
        (2, 1, "2", "2 cores"),
        (32, 8, "4", "32 cores / 8 processes"),
        (64, 1, "8", "64 cores, at most 8"),
        (192, 8, "8", "192 cores / 8 processes, at most 8"),
        (2, 8, "1", "2 cores / 8 processes"),
    ],
)
def test_threads_of_a_process(cores, count, threads, reason):
    assert sharing.threads(cores, count) == Choice(threads, reason)


@pytest.mark.parametrize(("hang_timeout", "seconds"), [(600.0, "900"), (0.0, "7200"), (0.5, "300")])
def test_the_launcher_notices_a_hang_before_nccl(hang_timeout, seconds):
    assert sharing.device_timeout(hang_timeout).value == seconds
