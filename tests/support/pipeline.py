"""A pipeline folder whose parts fit: configs, and weight files of zeros with the tensors that they ask for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from sdjob.model import shapes
from tests.sdjob.model.test_pipeline import make, write

UNET = {
    "in_channels": 4,
    "block_out_channels": [4, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 4,
}
VAE = {"latent_channels": 4, "block_out_channels": [2, 2], "layers_per_block": 1}
TEXT = {
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 77,
}
VOCAB = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}  # every letter is a token
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def zeros(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of fp16 zeros."""
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(position)


def expected(part: str, config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """The tensors that a config asks for."""
    found = getattr(shapes, part)(config)
    assert found
    return {name: tensor.shape for name, tensor in found.items()}


def make_fitting(folder: Path, **scheduler) -> Path:
    """Like `make`, with parts that belong together."""
    make(folder, **scheduler)
    write(folder / "tokenizer/vocab.json", VOCAB)
    for part, config in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
        write(folder / part / "config.json", config)
        write(folder / part / FILES[part], zeros(expected(part, config)))
    return folder
