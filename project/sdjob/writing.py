"""Writing below the output folder: whole files or none, and never through a link that is found there.

Who can write to the output folder, as on a shared volume, may have left links in it. A file that is replaced takes the
place of a link; where a file is opened again, or a folder is used again, a link is refused by an error that names it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo


class LinkError(OSError):
    """A link where a job writes."""

    def __init__(self, link: Path) -> None:
        super().__init__(
            errno.ELOOP, f"a link to {link.readlink()}, through which nothing is written", str(link)
        )


def refuse_links(path: Path, root: Path) -> None:
    """Raise LinkError if `path`, or a folder between it and `root`, is a link; where `root` is, the user has said."""
    if path.is_relative_to(root):
        parts = path.relative_to(root).parts
        for each in (root.joinpath(*parts[: count + 1]) for count in range(len(parts))):
            if each.is_symlink():
                raise LinkError(each)


def make_folder(folder: Path, root: Path) -> None:
    """Make a folder, and those above it, unless a link is among them below `root`. Raises OSError."""
    refuse_links(folder, root)
    folder.mkdir(parents=True, exist_ok=True)


def opened(path: Path, flags: int, mode: int = 0o666) -> int:
    """The descriptor of a regular file, which is neither reached by a link nor waited for. Raises OSError."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise LinkError(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def touch(path: Path) -> None:
    """Make an empty file unless it is there. Raises OSError."""
    os.close(opened(path, os.O_WRONLY | os.O_CREAT))


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link itself; nothing may be there. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # it enters no links either
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove what can be removed of it."""
    shutil.rmtree(path, ignore_errors=True)  # of a link or a file it removes nothing
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path alongside; the file or folder that the body writes there takes the name, unless the body fails.

    `durable`: even after a power cut the name never shows before the content. Raises OSError.
    """
    # Random, because process ids of two containers are often equal.
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        if durable:
            sync_tree(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    except BaseException:
        discard(temporary)
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a whole file or none; `private`: only its owner can read it. Raises OSError."""
    with replacing(path) as temporary:
        descriptor = opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)


def write_png(path: Path, image: Image, info: PngInfo | None = None) -> None:
    """Write a whole image or none, also at a power cut: it may be one to train on. Raises OSError."""
    with replacing(path, durable=True) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below, so that a rename cannot become visible before the data. Raises OSError.

    Makes them readable to those who can read the folder around them: safetensors writes files for their owner only.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_file():
            with contextlib.suppress(OSError):  # storage without modes
                path.chmod(path.stat().st_mode | path.parent.stat().st_mode & 0o666)
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """fsync a file or folder; some file systems cannot sync folders. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
