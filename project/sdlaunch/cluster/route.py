"""The route from this node to node 0: this node's address on it, and its interface, for torchrun, gloo and NCCL.

Without them PyTorch looks up this machine's own name, which other nodes may not resolve, or which /etc/hosts may give
as 127.0.1.1.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Networks for documentation: packets to them take the default route, and none is sent.
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")
_PORT = 9


@dataclass(frozen=True)
class Route:
    """How this node and node 0 reach each other."""

    target: str  # an address of node 0
    address: str  # of this node
    interface: str = ""  # "": unknown

    def variables(self) -> dict[str, str]:
        """What tells gloo and NCCL the interface; NCCL takes a name without `=` for a prefix."""
        name = self.interface
        return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"} if name else {}


LOOPBACK = Route("127.0.0.1", "127.0.0.1", "lo" if sys.platform == "linux" else "lo0")  # of one node


def host_and_port(endpoint: str) -> tuple[str, int]:
    """`node0:29400` or `[fd00::1]:29400` in two."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def find(endpoint: str, node_rank: int) -> Route:
    """The route to node 0; on node 0 its name may be a loopback address. Blocks; raises OSError."""
    host, port = host_and_port(endpoint)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except UnicodeError as error:  # a name that cannot be encoded, such as one with an empty part
        raise OSError(str(error)) from error
    targets = list(dict.fromkeys(each[4][0] for each in found))
    routes = [(str(target), source) for target in targets if (source := _source_address(str(target)))]
    if not routes:
        raise OSError(f"no route to {', '.join(map(str, targets))}")
    target, source = routes[0]
    interfaces = dict(_interfaces())
    if node_rank == 0 and _is_loopback(source):
        source = (
            next(filter(None, map(_source_address, _ELSEWHERE)), None) or _only_address(interfaces) or source
        )
    return Route(target, source, interfaces.get(source, ""))


def line(route: Route, endpoint: str, environ: Mapping[str, str]) -> str:
    """What a plan says about it. `environ` is that of the workers, before `variables` are added."""
    host, _ = host_and_port(endpoint)
    target = route.target if route.target == host else f"{host} ({route.target})"
    there = f"{route.address} on {route.interface}" if route.interface else route.address
    chosen = {name: environ.get(name) or value for name, value in route.variables().items()}
    used = ", ".join(f"{name}={value}" for name, value in chosen.items())
    return f"network: node 0 is {target}, this node {there}" + (f"; {used}" if used else "")


def _source_address(target: str) -> str | None:
    """The address from which packets to this one are sent; none is sent."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, _PORT))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _interfaces() -> Iterator[tuple[str, str]]:
    """Addresses of this machine, each with its interface."""
    import psutil  # only several nodes need it

    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                yield each.address.partition("%")[0], name


def _only_address(interfaces: Mapping[str, str]) -> str | None:
    """The address of a machine without a default route, if it has one interface; IPv4 first."""
    outside = {address: name for address, name in interfaces.items() if not _is_local(address)}
    addresses = sorted(outside, key=lambda address: ":" in address)
    return addresses[0] if len(set(outside.values())) == 1 else None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_local(address: str) -> bool:
    return _is_loopback(address) or ipaddress.ip_address(address).is_link_local
