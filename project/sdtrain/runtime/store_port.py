"""The port at which rank 0 of a job on one node serves the store of its ranks: on the loopback interface alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def reserved(environ: Mapping[str, str] = os.environ) -> socket.socket | None:
    """The port that torchrun has found free, taken before another program does; PyTorch would open it to all networks.

    None: this rank serves no store, or ranks of other nodes need it. Raises OSError.
    """
    address, size = environ.get("MASTER_ADDR", ""), environ.get("WORLD_SIZE", "1")
    is_server = environ.get("RANK") == "0" and environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False"
    if address != "127.0.0.1" or size == "1" or size != environ.get("LOCAL_WORLD_SIZE") or not is_server:
        return None
    return socket.create_server((address, int(environ["MASTER_PORT"])))
