"""Models in one file: of full size but without content, and tiny ones with weights."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from sdjob.model import key_names, kinds, shapes

Shapes = dict[str, tuple[int, ...]]


def original_shapes(kind: kinds.Kind) -> Shapes:
    """Name → shape of everything that a published file of this kind holds of its parts."""
    found: Shapes = {}
    for part, config in kind.parts.items():
        expected = getattr(shapes, part)(config)
        places = key_names.places(part, config, expected, xl=kind is kinds.SD_XL)
        for name, place in places.items():
            shape = expected[name].shape
            if place.third is not None:
                shape = (3 * shape[0], *shape[1:])
            found[place.name] = (*shape, 1, 1) if place.pixelwise else shape
    return found


def sparse(path: Path, tensors: Mapping[str, tuple[int, ...]], **metadata: str) -> Path:
    """A safetensors file of fp16 tensors that takes no room on the disk."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape in tensors.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path
