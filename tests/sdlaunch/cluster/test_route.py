"""The route to node 0: addresses of this machine, where a name is a loopback address or unknown."""

import socket

import pytest

from sdlaunch.cluster import route
from sdlaunch.cluster.route import Route

ADDRESSES = {"127.0.0.1": "lo", "::1": "lo", "10.0.0.2": "eth0", "fd00::2": "eth0", "fe80::2": "eth0"}
# Target → the address from which packets to it are sent.
SOURCES = {"10.0.0.1": "10.0.0.2", "10.0.0.2": "10.0.0.2", "fd00::1": "fd00::2", "127.0.1.1": "127.0.0.1"}
NAMES = {
    "node0": ["10.0.0.1"],
    "both": ["2001:db8:1::1", "10.0.0.1"],
    "own": ["127.0.1.1"],
    "far": ["10.9.9.9"],
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with these names, routes and interfaces, and no default route."""

    def look_up(host, port, type):
        if host == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = NAMES.get(host, [host])
        return [(0, type, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(route, "_source_address", SOURCES.get)
    monkeypatch.setattr(route, "_interfaces", lambda: iter(ADDRESSES.items()))


@pytest.mark.parametrize(
    ("endpoint", "rank", "found"),
    [
        ("node0:29400", 1, Route("10.0.0.1", "10.0.0.2", "eth0")),
        ("10.0.0.2:29400", 0, Route("10.0.0.2", "10.0.0.2", "eth0")),  # node 0 to itself
        ("[fd00::1]:29400", 1, Route("fd00::1", "fd00::2", "eth0")),
        ("both:29400", 1, Route("10.0.0.1", "10.0.0.2", "eth0")),  # no route to the first address
        ("own:29400", 0, Route("127.0.1.1", "10.0.0.2", "eth0")),
        ("own:29400", 1, Route("127.0.1.1", "127.0.0.1", "lo")),  # two nodes on one machine
    ],
)
def test_the_address_and_interface_on_the_way_to_node_0(endpoint, rank, found):
    assert route.find(endpoint, rank) == found


def test_a_loopback_name_and_a_default_route(monkeypatch):
    monkeypatch.setitem(ADDRESSES, "192.168.7.2", "eth1")
    monkeypatch.setitem(SOURCES, route._ELSEWHERE[0], "192.168.7.2")
    assert route.find("own:29400", 0) == Route("127.0.1.1", "192.168.7.2", "eth1")
    monkeypatch.delitem(SOURCES, route._ELSEWHERE[0])
    assert route.find("own:29400", 0) == Route(
        "127.0.1.1", "127.0.0.1", "lo"
    )  # two interfaces: which is unknown


def test_what_cannot_be_found():
    with pytest.raises(OSError, match="Name or service not known"):
        route.find("nowhere:29400", 1)
    with pytest.raises(OSError, match=r"no route to 10\.9\.9\.9"):
        route.find("far:29400", 1)


def test_the_line_of_a_plan():
    found = Route("10.0.0.1", "10.0.0.2", "eth0")
    there = "network: node 0 is node0 (10.0.0.1), this node 10.0.0.2 on eth0"
    assert route.line(found, "node0:1", {}) == f"{there}; GLOO_SOCKET_IFNAME=eth0, NCCL_SOCKET_IFNAME==eth0"
    own = {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib"}
    assert route.line(found, "node0:1", own) == f"{there}; GLOO_SOCKET_IFNAME=ib0, NCCL_SOCKET_IFNAME=ib"
