import pytest

from sdjob.automatic import Choice, processes


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
    assert processes.threads(cores, count) == Choice(threads, reason)


@pytest.mark.parametrize(
    ("device", "nodes", "torch_binds", "has_numactl", "binding"),
    [
        ("cuda", 2, True, True, "node"),
        ("cuda", 1, True, True, ""),
        ("cuda", 2, False, True, ""),
        ("cuda", 2, True, False, ""),
        ("cpu", 2, True, True, ""),
    ],
)
def test_processes_are_bound_where_everything_for_it_is_there(
    device, nodes, torch_binds, has_numactl, binding
):
    choice = processes.numa_binding(device, nodes, torch_binds=torch_binds, has_numactl=has_numactl)
    assert choice.value == binding and choice.reason


@pytest.mark.parametrize(("hang_timeout", "seconds"), [(600.0, "900"), (0.0, "7200"), (0.5, "300")])
def test_the_launcher_notices_a_hang_before_nccl(hang_timeout, seconds):
    assert processes.device_timeout(hang_timeout).value == seconds
