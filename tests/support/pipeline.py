"""A pipeline folder with matching parts: configs, and weight files of zeros with the tensors that they require."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.sdjob.model.test_pipeline import make, write

UNET = {
    "in_channels": 4,
    "block_out_channels": [4, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 4,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
}
VAE = {
    "latent_channels": 4,
    "block_out_channels": [2, 2],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
TEXT = {
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
}
VOCAB = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}  # every letter is a token
_TENSORS = Path(__file__).with_name("data") / "tiny_tensors.json"
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def zeros(tensors: Mapping[str, Sequence[int]]) -> bytes:
    """A safetensors file of fp16 zeros."""
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(position)


def tiny_tensors(part: str) -> dict[str, list[int]]:
    """The tensors that these configs require (test_check_tensors.py compares them), without importing torch."""
    tensors: dict[str, list[int]] = json.loads(_TENSORS.read_text())[part]
    return tensors


def make_fitting(folder: Path, **scheduler) -> Path:
    """Like `make`, with parts that match each other."""
    make(folder, **scheduler)
    write(folder / "tokenizer/vocab.json", VOCAB)
    for part, config in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
        write(folder / part / "config.json", config)
        write(folder / part / FILES[part], zeros(tiny_tensors(part)))
    return folder


def reconfigure(folder: Path, part: str, **values) -> None:
    """Other values in the config of a part."""
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
