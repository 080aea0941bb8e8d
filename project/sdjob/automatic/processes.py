"""How the processes of a node share it, and how long they wait for one another."""

from __future__ import annotations

from sdjob.automatic import Choice
from sdjob.formatting import counted

_MOST_THREADS = 8  # more do not make the work of a step on the host faster, and get in the way of each other
_AFTER_HANG = 300  # seconds: so that the launcher, which names the rank at fault, is first
_NEVER = 7200  # seconds, where hang_timeout is 0


def threads(cores: int, processes: int) -> Choice:
    """Threads of a process for operations on the CPU (OMP_NUM_THREADS); all cores where it trains on them."""
    fraction = max(1, cores // processes)
    reason = counted(cores, "core") + (f" / {processes} processes" if processes > 1 else "")
    if fraction <= _MOST_THREADS:
        return Choice(str(fraction), reason)
    return Choice(str(_MOST_THREADS), f"{reason}, at most {_MOST_THREADS}")


def numa_binding(device: str, numa_nodes: int, *, torch_binds: bool, has_numactl: bool) -> Choice:
    """torchrun's --numa-binding, which binds each process to the cores near its GPU; "": not bound."""
    if device != "cuda":
        return Choice("", "only next to NVIDIA GPUs")
    if numa_nodes < 2:
        return Choice("", "the machine is one NUMA node")
    if not torch_binds:
        return Choice("", "this PyTorch cannot")
    if not has_numactl:
        return Choice("", "numactl is not installed")
    return Choice("node", f"{numa_nodes} NUMA nodes")


def device_timeout(hang_timeout: float) -> Choice:
    """Seconds after which a collective call between devices (NCCL) fails. Calls on the host have their own, long limit:
    ranks also wait there for the lone work of one, which is a sign of life."""
    if not hang_timeout:
        return Choice(str(_NEVER), "hang_timeout=0")
    return Choice(f"{hang_timeout + _AFTER_HANG:.0f}", f"{_AFTER_HANG} s after hang_timeout")
