"""How the processes of a run meet, and meet again after a crash."""

import datetime
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from sdjob import protocol
from sdtrain.runtime import distributed
from tests.support import worker


def test_the_launcher_knows_the_function_that_waits():
    assert distributed.wait_for_ranks.__name__ == protocol.WAIT_FOR_RANKS


def _meets(environ: dict[str, str]) -> None:
    """Ends with 0 if this process met the others, and they agreed."""
    os.environ.update(environ)
    distributed._TIMEOUT = datetime.timedelta(seconds=15)
    with distributed.join("cpu") as joined:
        assert joined.any(joined.rank == 1)
    os._exit(0)


def test_ranks_meet_whatever_their_nodes_have_counted():
    """A node whose workers did not crash has not counted the restart."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(worker.free_port())}
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(
            target=_meets,
            args=({**shared, "RANK": str(n), "LOCAL_RANK": "0", "TORCHELASTIC_RESTART_COUNT": str(n)},),
        )
        for n in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]


CRASHES_ONCE = """
import os, sys, time
from pathlib import Path
from sdjob import protocol
from sdtrain.runtime import distributed
mark = Path(sys.argv[1], os.environ["RANK"])
first = not mark.exists()
mark.touch()
with distributed.join("cpu") as joined:
    if first and joined.rank == 1:
        os._exit(3)
    if first:
        time.sleep(60)  # in the middle of a long step, whose peers are not needed
    assert joined.any(joined.rank == 1)
    print("met again", joined.rank, os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
"""


@pytest.mark.long
def test_after_a_crash_on_one_node_the_ranks_of_two_meet_again(tmp_path):
    """With a torchrun for each node, as the launcher starts them."""
    (tmp_path / "crashes.py").write_text(CRASHES_ONCE)
    endpoint = f"127.0.0.1:{worker.free_port()}"
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"),
                *("--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-id=sdjob"),
                *(f"--rdzv-endpoint={endpoint}", f"--rdzv-conf=is_host={str(node == 0).lower()}"),
                *(str(tmp_path / "crashes.py"), str(tmp_path)),
            ],
            env=worker.environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        until = time.monotonic() + 120
        while any(node.poll() is None for node in nodes) and time.monotonic() < until:
            time.sleep(0.2)
        codes = [node.poll() for node in nodes]
    finally:
        for node in nodes:
            node.terminate()
    text = "".join(node.communicate(timeout=60)[0] for node in nodes)
    assert codes == [0, 0], text
    assert sorted(line for line in text.splitlines() if "met again" in line) == [
        "met again 0 0",
        "met again 1 1",
    ]
