"""A network of its own for a job on one node, which can be cut: ranks reach each other by the loopback interface."""

import ctypes
import os
import subprocess

_CLONE_NEWNET = 0x40000000


def isolate() -> None:
    """Give this process, and all that it starts, a loopback interface of its own. Raises OSError without privileges."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def cut(pid: int) -> None:
    """From here on no packet passes in the network of this process; no connection is closed."""
    subprocess.run(["nsenter", f"--target={pid}", "--net", "ip", "link", "set", "lo", "down"], check=True)
