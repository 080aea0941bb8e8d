"""ICC profiles, written tag by tag: of RGB by primaries and tone curve, of grey, and of CMYK by a table."""

from __future__ import annotations

import struct
from itertools import product

_D50 = (0.9642, 1.0, 0.8249)
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB_CURVE = (
    b"para"
    + bytes(4)
    + struct.pack(
        ">HHiiiii", 3, 0, *(round(x * 65536) for x in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    )
)


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def rgb(name: str, primaries, curve: bytes) -> bytes:
    """A profile of RGB; `primaries`: XYZ of red, green and blue, adapted to D50."""
    columns = {key: _xyz(value) for key, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return _profile(
        b"mntr", b"RGB ", b"XYZ ", name, {**columns, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    )


def grey(name: str, curve: bytes) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", name, {b"kTRC": curve})


def cmyk(name: str) -> bytes:
    """Inks that are all grey: paper has L* 100, full cyan 50, everything with full yellow or black 0."""
    lightness = [
        0 if yellow or black else 127 if cyan else 255 for cyan, _, yellow, black in product((0, 1), repeat=4)
    ]
    ramp = bytes(range(256))
    table = b"".join(bytes((level, 128, 128)) for level in lightness)
    identity = struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", name, {b"A2B0": lut, b"A2B1": lut})


def _xyz(value) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(x * 65536) for x in value))


def _profile(kind: bytes, space: bytes, connection: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": described, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _xyz(_D50), **tags}
    start = 128 + 4 + 12 * len(tags)
    index, body = b"", b""
    for key, value in tags.items():
        index += key + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12x4s", start + len(body), bytes(4), 0x02400000, kind, space, connection, b"acsp"
    )
    header = header.ljust(68, b"\0") + _xyz(_D50)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index + body
