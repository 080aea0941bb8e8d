"""A file system of its own that fails as real ones do: full, read-only after an error, without its device, removed."""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN: every access fails from here on, as without the device
_WITHOUT_FLUSH = struct.pack("I", 2)


class Volume:
    """An ext4 file system in a file, mounted on a folder; `output` is a folder on it."""

    def __init__(self, folder: Path, megabytes: int = 48) -> None:
        """Raises OSError where nothing can be mounted."""
        self._image, self.root = folder / "image", folder / "mounted"
        self.root.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-b", "1024", self._image)
        self._mount()

    def fill(self) -> None:
        with (self.root / "other").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1024)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def make_read_only(self) -> None:
        """As the kernel does after an error, also while files are open for writing."""
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(self.root)], capture_output=True, text=True, check=True
        ).stdout.strip()
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("test")

    def lose(self) -> None:
        """Every access fails with EIO."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUT_DOWN, _WITHOUT_FLUSH)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        for path in self.root.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def repair(self) -> None:
        """What an operator does before the next start; from a copy, since a container that has just been made on this
        machine may hold the broken one."""
        self.unmount()
        self._image = Path(shutil.copyfile(self._image, self._image.with_name("repaired")))
        subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, check=False)
        self._mount()
        (self.root / "other").unlink(missing_ok=True)

    def unmount(self) -> None:
        _run("umount", self.root)

    def _mount(self) -> None:
        _run("mount", "-o", "loop,errors=remount-ro", self._image, self.root)


FAULTS: dict[str, Callable[[Volume], None]] = {
    "disk full": Volume.fill,
    "read-only": Volume.make_read_only,
    "EIO": Volume.lose,
    "removed": Volume.remove,
}
CALLS = {"quota": errno.EDQUOT, "ESTALE": errno.ESTALE}  # what no file system of one machine does to root
_VARIABLE = "FAILING_CALLS"


def preload(folder: Path) -> None:
    """Start this program again so that its calls can be made to fail, and those of its forks. Raises OSError."""
    if _VARIABLE in os.environ:
        return
    library = folder / "failing_calls.so"
    source = Path(__file__).with_name("failing_calls.c")
    _run("cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl")
    environ = {**os.environ, "LD_PRELOAD": str(library.resolve()), _VARIABLE: str(folder.resolve() / "rule")}
    os.execve(sys.executable, sys.orig_argv, environ)


def fail_calls(number: int, folder: Path) -> None:
    """From here on calls that change files below this folder fail, until `pass_calls`."""
    Path(os.environ[_VARIABLE]).write_text(f"{number} {folder}")


def pass_calls() -> None:
    Path(os.environ[_VARIABLE]).unlink(missing_ok=True)


def _run(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{words[0]}: {done.stderr.strip()}")
