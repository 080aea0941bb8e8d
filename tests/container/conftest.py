"""Containers of the real image, with the tightest restrictions of any platform."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.container import engine as engines
from tests.container.engine import Engine

UID = 10001  # of the image
CLOSED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")


@dataclass(frozen=True)
class Ended:
    """A finished container: exit code, all of its output, its standard output, and its time."""

    code: int
    text: str
    output: str
    seconds: float


@dataclass(frozen=True)
class Box:
    """Start containers of the image without a network; only /output and shared memory are writable."""

    engine: Engine
    image: str
    started: list[str] = field(default_factory=list)

    def run(
        self,
        *command: str,
        mounts: Mapping[str, Path] | None = None,
        options: Sequence[str] = (),
        timeout: float = 300,
        **env: str,
    ) -> Ended:
        """Run a container until it ends."""
        began = time.monotonic()
        arguments = ("run", "--rm", *self._options(mounts or {}, options, env), self.image, *command)
        done = self.engine.run(*arguments, timeout=timeout)
        return Ended(done.returncode, done.stdout + done.stderr, done.stdout, time.monotonic() - began)

    def start(
        self, *command: str, mounts: Mapping[str, Path], options: Sequence[str] = (), **env: str
    ) -> str:
        """Start a container in the background; returns its id. It is removed after the test."""
        arguments = ("run", "--detach", *self._options(mounts, options, env), self.image, *command)
        name = self.engine.call(*arguments).strip().splitlines()[-1]
        self.started.append(name)
        return name

    def logs(self, name: str) -> str:
        done = self.engine.run("logs", name)
        return done.stdout + done.stderr

    def wait(self, name: str, timeout: float = 300) -> int:
        """Wait for the end; returns the exit code."""
        return int(self.engine.call("wait", name, timeout=timeout).strip())

    def until(self, name: str, text: str, timeout: float = 180) -> None:
        """Wait until the container has printed this."""
        deadline = time.monotonic() + timeout
        while text not in (printed := self.logs(name)):
            assert time.monotonic() < deadline, printed
            assert self.running(name), printed
            time.sleep(0.2)

    def running(self, name: str) -> bool:
        return self.engine.call("inspect", "--format={{.State.Running}}", name).strip() == "true"

    def _options(
        self, mounts: Mapping[str, Path], options: Sequence[str], env: Mapping[str, str]
    ) -> list[str]:
        network = [] if any(option.startswith("--network") for option in options) else ["--network=none"]
        # podman puts a tmpfs on /tmp of a read-only container, docker does not: here neither does.
        plain = ["--read-only-tmpfs=false"] if self.engine.is_podman else []
        volumes = [
            f"--volume={path}:{target}" + (":ro" if target != "/output" else "")
            for target, path in mounts.items()
        ]
        return [*CLOSED, *plain, *network, *volumes, *(f"--env={k}={v}" for k, v in env.items()), *options]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine of this machine; the tests are skipped without one, with the reason."""
    found = engines.find()
    if isinstance(found, str):
        pytest.skip(f"no container engine: {found}; `make test-container` installs one on Debian as root")
    return found


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The image `cpu` of this checkout."""
    return engines.build(engine)


@pytest.fixture
def box(engine: Engine, image: str) -> Iterator[Box]:
    """Containers of the image, all removed after the test."""
    box = Box(engine, image)
    yield box
    for name in box.started:
        engine.run("rm", "--force", name)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pipeline and the images of its subject, readable by all users: model/ and dataset/."""
    from sddemo.write_demo import write_demo

    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, 0)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in folder.parents[:3]:  # pytest's own folders are closed to other users
        parent.chmod(parent.stat().st_mode | 0o055)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder that is writable for the image's user."""
    folder = tmp_path / "output"
    folder.mkdir()
    os.chown(folder, UID, 0)
    return folder


@pytest.fixture
def mounts(demo: Path, output: Path) -> dict[str, Path]:
    """The mounts of a job that can run."""
    return {"/mnt/model": demo / "model", "/mnt/dataset": demo / "dataset", "/output": output}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project as a platform would mount it, with a .venv of another machine in it."""
    folder = tmp_path_factory.mktemp("copy") / "project"
    folder.mkdir()
    tracked = subprocess.run(
        ["tar", "-C", str(engines.HOME), "-c", "train.sh", "entrypoint.py", "project", "env"],
        capture_output=True,
        check=True,
    )
    subprocess.run(["tar", "-C", str(folder), "-x"], input=tracked.stdout, check=True)
    foreign = folder / ".venv/bin/python"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("#!/bin/sh\necho not this one\nexit 1\n")
    foreign.chmod(0o755)
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    return folder


@dataclass(frozen=True)
class Node:
    """A network of one container: options of its start, and its address."""

    options: tuple[str, ...]
    address: str


@pytest.fixture
def nodes(engine: Engine) -> Iterator[tuple[Node, Node]]:
    """Two network namespaces that reach each other and nothing else."""
    tag = f"sdft{os.getpid()}"
    if not engine.is_podman:
        engine.call("network", "create", "--internal", "--subnet=10.231.7.0/24", tag)
        try:
            first, second = (
                Node((f"--network={tag}", f"--ip={address}"), address)
                for address in ("10.231.7.2", "10.231.7.3")
            )
            yield first, second
        finally:
            engine.run("network", "rm", tag)
        return
    names, ends = (f"{tag}a", f"{tag}b"), (f"v{os.getpid()}a", f"v{os.getpid()}b")
    addresses = ("10.231.7.2", "10.231.7.3")
    # Nodes use each other's names, and there is no name server here.
    known = [f"--add-host={name}:{address}" for name, address in zip(names, addresses, strict=True)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, addresses, strict=True):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = (
            Node((f"--network=ns:/run/netns/{name}", f"--hostname={name}", *known), address)
            for name, address in zip(names, addresses, strict=True)
        )
        yield first, second
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
