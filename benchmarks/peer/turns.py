"""Several programs that take turns, step by step, by a token that goes round: while one works, the others sleep."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_STARTER = "starter"


class Post:
    """A place in the round: a socket with a name in a folder, which keeps what was sent until it is read."""

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
    """One program's part in the round, up to its last step."""

    folder: Path
    place: int
    programs: int
    steps: int
    _post: Post | None = field(default=None, repr=False)

    @staticmethod
    def of(environ: Mapping[str, str]) -> Turns | None:
        """What `environment` says; None: no turns are taken."""
        if "PEER_TURNS" not in environ:
            return None
        place, programs, steps = (int(number) for number in environ["PEER_PLACE"].split())
        return Turns(Path(environ["PEER_TURNS"]), place, programs, steps)

    def environment(self) -> dict[str, str]:
        return {"PEER_TURNS": str(self.folder), "PEER_PLACE": f"{self.place} {self.programs} {self.steps}"}

    def over(self, step: int) -> None:
        """After each step: hands the token on, and waits until it comes back, but for the last step.

        After the first there is no token yet: the starter sends one when all have come so far.
        """
        if self._post is None:
            self._post = Post(self.folder, str(self.place))
        if step == 1:
            self._post.send(self.folder / _STARTER)
        elif step < self.steps or self.place < self.programs - 1:  # after the very last step nobody waits
            self._post.send(self.folder / str((self.place + 1) % self.programs))
        if step < self.steps:
            self._post.wait()
        else:
            self._post.close()


def start(folder: Path, programs: int, alive: Callable[[], bool]) -> None:
    """Lets the first program go when all wait for their turn. Raises RuntimeError if one ends before."""
    begun = 0
    with contextlib.closing(Post(folder, _STARTER, seconds=1.0)) as post:
        while begun < programs:
            try:
                post.wait()
                begun += 1
            except TimeoutError:
                if not alive():
                    raise RuntimeError("a trainer ended before its first step was over") from None
        post.send(folder / "0")
