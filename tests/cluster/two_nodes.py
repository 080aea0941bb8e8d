"""A job of two launchers on the two nodes of a network, as a platform starts them: with NNODES and MASTER_ADDR."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sdjob.protocol import Channel, Heartbeat
from tests.cluster.network import Network
from tests.sdlaunch.workspace import HOME, clean_environment


@dataclass
class Node:
    """The launcher of one node. `text` is what all of its starts have printed."""

    number: int
    job: TwoNodes
    process: subprocess.Popen[bytes] | None = None

    @property
    def text(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.job.folder / f"node{self.number}.txt"

    def start(self, hosts: Path | None = None, **variables: str) -> Node:
        """Start the launcher, with more variables than those of the job."""
        environ = {**self.job.variables, "NODE_RANK": str(self.number), **variables}
        command = self.job.network.on_node(f"node{self.number}", "bash", str(HOME / "train.sh"), hosts=hosts)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=clean_environment(**environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def end(self, timeout: float = 120) -> int:
        """Wait for the end; returns the exit code."""
        assert self.process
        until(lambda: self.process.poll() is not None, timeout, lambda: self.job.text)
        return self.process.returncode

    def until(self, text: str, timeout: float = 90) -> None:
        """Wait until it has printed this."""
        until(lambda: text in self.text, timeout, lambda: f"{text!r} never came:\n{self.job.text}")

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def torchrun(self) -> psutil.Process:
        assert self.process
        [child] = psutil.Process(self.process.pid).children()
        return child

    @property
    def notes(self) -> Path:
        return Channel.of_node(self.job.output / "run", self.number).notes

    def rank(self) -> tuple[int, Heartbeat]:
        """The rank on this node, with its last heartbeat."""
        [found] = Heartbeat.read_all(self.notes).items()
        return found


@dataclass
class TwoNodes:
    """The job. Its variables are the same on both nodes."""

    network: Network
    folder: Path
    variables: dict[str, str]
    nodes: tuple[Node, Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = (Node(0, self), Node(1, self))

    @property
    def output(self) -> Path:
        return Path(self.variables["OUTPUT_DIR"])

    @property
    def text(self) -> str:
        return "\n".join(f"--- node {node.number}\n{node.text}" for node in self.nodes)

    def start(self, **variables: str) -> TwoNodes:
        for node in self.nodes:
            node.start(**variables)
        return self

    def ends(self, timeout: float = 120) -> list[int]:
        return [node.end(timeout) for node in self.nodes]

    def trains(self) -> None:
        """Wait until both ranks have made a step."""

        def have_stepped() -> bool:
            assert all(node.process and node.process.poll() is None for node in self.nodes), self.text
            beats = [beat for node in self.nodes for beat in Heartbeat.read_all(node.notes).values()]
            return len(beats) == 2 and all(beat.step for beat in beats)

        until(have_stepped, 90, lambda: self.text)

    def close(self) -> None:
        """End what is left: the ranks are killed with the network."""
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                for each in psutil.Process(node.process.pid).children(recursive=True):
                    each.kill()
                node.process.kill()
                node.process.wait()


def until(condition: Callable[[], bool], timeout: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
