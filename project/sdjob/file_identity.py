"""Files by their content, whatever their paths and times.

A file may be replaced and keep its time: by image layers, archives, object mounts.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sdjob.reading import opened

EDGE = 1 << 20
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16  # between head and tail


def content_id(path: Path, tail: int = EDGE) -> str:
    """A hash of size, head, tail and evenly spaced samples: all of a small file, about 3 MiB of a large one.

    Raises OSError.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(f"{size}/".encode(), digest_size=16)
    with opened(path) as file:
        if size <= EDGE + _SAMPLES * _SAMPLE_BYTES + tail:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(EDGE))
        for number in range(_SAMPLES):
            file.seek(EDGE + (size - EDGE - tail - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(size - tail)
        digest.update(file.read(tail))
    return digest.hexdigest()


def edges(path: Path) -> bytes:
    """Name, size, head and tail: what checkpoints record of a weight file since version 0.1. Raises OSError."""
    size = path.stat().st_size
    with opened(path) as file:
        head = file.read(EDGE)
        file.seek(max(0, size - EDGE))
        return f"{path.name}/{size}/".encode() + head + file.read(EDGE)
