"""Two nodes on this machine: a network and a UTS namespace each, with a cable between them.

Only the two nodes reach each other. Nothing outlives the network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = {"node0": "10.231.8.1", "node1": "10.231.8.2"}
ADDRESSES_V6 = {"node0": "fd00:231:8::1", "node1": "fd00:231:8::2"}
# `ip netns exec` has unshared the mounts: the host's /etc/hosts stays unchanged.
_ON_NODE = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'


def missing() -> str:
    """Why no nodes can be started here; empty: they can."""
    if absent := [name for name in ("ip", "unshare") if not shutil.which(name)]:
        return f"{', '.join(absent)} not found; `make test-cluster` installs them on Debian as root"
    if os.geteuid():
        return "network namespaces need root"
    done = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return done.stderr.strip()


@dataclass(frozen=True)
class Network:
    """The nodes. `hosts` is the /etc/hosts of both."""

    hosts: Path
    namespaces: dict[str, str]  # by the names of the nodes

    def on_node(self, name: str, *command: str, hosts: Path | None = None) -> list[str]:
        """The command that runs this one on a node, with another /etc/hosts if given; it becomes its process."""
        inside = ["unshare", "--uts", "sh", "-c", _ON_NODE, "sh", str(hosts or self.hosts), name, *command]
        return ["ip", "netns", "exec", self.namespaces[name], *inside]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """While the block runs, no packet passes the cable."""
        namespace = self.namespaces["node1"]
        _ip("-n", namespace, "link", "set", "eth0", "down")
        try:
            yield
        finally:
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", namespace, "-6", "address", "replace", f"{ADDRESSES_V6['node1']}/64", *_AT_ONCE)


_AT_ONCE = ("dev", "eth0", "nodad")


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Network]:
    """The nodes, with their /etc/hosts in this folder. Afterwards all processes on them have ended."""
    hosts = folder / "hosts"
    names = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
    hosts.write_text(f"127.0.0.1 localhost\n{names}")
    label = uuid.uuid4().hex[:8]  # there may be several networks at a time
    network = Network(hosts, {name: f"{label}-{name}" for name in ADDRESSES})
    try:
        _add(network)
        yield network
    finally:
        _remove(network)


def _add(network: Network) -> None:
    first, second = network.namespaces.values()
    for namespace in (first, second):
        _ip("netns", "add", namespace)
    _ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
    for name, namespace in network.namespaces.items():
        _ip("-n", namespace, "address", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
        _ip("-n", namespace, "-6", "address", "add", f"{ADDRESSES_V6[name]}/64", *_AT_ONCE)
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")


def _remove(network: Network) -> None:
    """End what may be left in the namespaces, and remove them."""
    for namespace in network.namespaces.values():
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
