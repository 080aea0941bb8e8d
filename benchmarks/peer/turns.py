"""Let several programs take turns, step by step, by passing a token: while one works, the others sleep."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_STARTER = "starter"


class Post:
    """One program's mailbox: a named socket in a folder, which keeps a message until it is read."""

    def __init__(self, folder: Path, name: str, seconds: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / name))
        self._socket.settimeout(seconds)

    def wait(self) -> None:
        self._socket.recv(1)

    def send(self, path: Path) -> None:
        self._socket.sendto(b".", str(path))

    def close(self) -> None:
        self._socket.close()


@dataclass
class Turns:
    """One program's turns, up to its last step."""

    folder: Path
    position: int
    programs: int
    steps: int
    _post: Post | None = field(default=None, repr=False)

    @staticmethod
    def of(environ: Mapping[str, str]) -> Turns | None:
        """Read what `environment` returns; None: no turns are taken."""
        if "PEER_TURNS" not in environ:
            return None
        position, programs, steps = (int(number) for number in environ["PEER_POSITION"].split())
        return Turns(Path(environ["PEER_TURNS"]), position, programs, steps)

    def environment(self) -> dict[str, str]:
        return {
            "PEER_TURNS": str(self.folder),
            "PEER_POSITION": f"{self.position} {self.programs} {self.steps}",
        }

    def over(self, step: int) -> None:
        """After each step: pass the token on and wait until it returns, except after the last step.

        After the first step there is no token yet: the starter sends one when all programs have finished it.
        """
        if self._post is None:
            self._post = Post(self.folder, str(self.position))
        if step == 1:
            self._post.send(self.folder / _STARTER)
        elif (
            step < self.steps or self.position < self.programs - 1
        ):  # after the very last step no program waits
            self._post.send(self.folder / str((self.position + 1) % self.programs))
        if step < self.steps:
            self._post.wait()
        else:
            self._post.close()


def start(folder: Path, programs: int, alive: Callable[[], bool]) -> None:
    """Send the token to the first program when all wait for their turn. Raises RuntimeError if one ends before."""
    ready = 0
    with contextlib.closing(Post(folder, _STARTER, seconds=1.0)) as post:
        while ready < programs:
            try:
                post.wait()
                ready += 1
            except TimeoutError:
                if not alive():
                    raise RuntimeError("a trainer ended before its first step was over") from None
        post.send(folder / "0")
