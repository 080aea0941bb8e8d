"""The store of a job on one node: at a port of the loopback interface, taken before another program takes it."""

import pytest

from sdtrain.runtime import store_port
from tests.support.worker import free_port

ONE_NODE = {
    "MASTER_ADDR": "127.0.0.1",
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "False",
}


def test_rank_0_of_one_node_takes_the_port_on_the_loopback_interface():
    port = free_port()
    with store_port.reserved({**ONE_NODE, "MASTER_PORT": str(port)}) as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
        with pytest.raises(OSError):
            store_port.reserved({**ONE_NODE, "MASTER_PORT": str(port)})


@pytest.mark.parametrize(
    "other",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "4"},  # two nodes
        {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
        {"MASTER_ADDR": "10.0.0.1"},
        {"TORCHELASTIC_USE_AGENT_STORE": "True"},  # torchrun --standalone serves it
    ],
)
def test_others_take_no_port(other):
    assert store_port.reserved({**ONE_NODE, "MASTER_PORT": "1", **other}) is None
    assert store_port.reserved({}) is None
