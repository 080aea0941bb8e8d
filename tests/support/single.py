"""Single-file models: full-size ones without content, and tiny ones with weights."""

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path

from sdjob.model import key_names, single_file

Shapes = dict[str, tuple[int, ...]]
SD_1, SD_2, SD_XL = "stable_diffusion_1", "stable_diffusion_2_base", "stable_diffusion_xl"
LAYOUTS = {SD_1: "stable-diffusion", SD_2: "stable-diffusion", SD_XL: "stable-diffusion-xl"}
CONFIGS = Path(single_file.__file__).with_name("configs")
_PUBLISHED = Path(__file__).with_name("data") / "published_tensors.json.gz"


def published_tensors(model: str) -> dict[str, Shapes]:
    """Part → shapes of its tensors by diffusers' names (test_check_tensors.py compares them)."""
    parts = json.loads(gzip.decompress(_PUBLISHED.read_bytes()))[model]
    return {part: {name: tuple(shape) for name, shape in tensors.items()} for part, tensors in parts.items()}


def config_of(model: str, part: str) -> dict:
    return json.loads((CONFIGS / model / part / "config.json").read_text())


def original_shapes(model: str) -> Shapes:
    """Name → shape of all tensors in a published file of this model."""
    found: Shapes = {}
    for part, tensors in published_tensors(model).items():
        originals = key_names.original_tensors(LAYOUTS[model], part, config_of(model, part), tensors)
        for name, original in originals.items():
            shape = tensors[name]
            if original.third is not None:
                shape = (3 * shape[0], *shape[1:])
            if original.transposed:
                shape = shape[::-1]
            found[original.name] = (*shape, 1, 1) if original.pixelwise else shape
    return found


def sparse(path: Path, tensors: Mapping[str, tuple[int, ...]], **metadata: str) -> Path:
    """A safetensors file of fp16 tensors that takes no space on the disk."""
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
