"""The files of a checkpoint, checkpoint-NNNNNN/, by name; the format counts up when any of them changes its meaning.

sdtrain/checkpoint/checkpoint.py writes the state, the settings and the manifest, which makes the checkpoint complete;
sdtrain/checkpoint/state_io.py writes and reads the rest in one of two forms, which every strategy reads.
"""

from __future__ import annotations

FORMAT = 3  # in STATE
READABLE_FORMATS = (2, FORMAT)

MANIFEST = "manifest.json"  # size and SHA-256 of every other file (layout.write_manifest); written last
STATE = "state.json"  # progress and fingerprint: checkpoint.TrainState
SETTINGS = "settings.json"  # the worker's flags: what the weights are (run_settings.py); older ones lack it

# The whole form (state_io.save_whole), by rank 0 of strategies that hold whole tensors:
MODEL = "model.safetensors"  # fp32 masters of the trainable weights
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.pt"  # its state, names of the weights, scale of the loss

# The sharded form (state_io.save), by all ranks of those that shard:
SHARDS = "shards"  # folder of torch.distributed.checkpoint: masters, EMA, AdamW's state
NUMBERS = "numbers.json"  # state_io.Numbers: updates, scale of the loss
