"""Step checkpoints: written while training continues, committed by one rename, read by every strategy.

Start reading: checkpoint.py.
May import: torch, safetensors, sdjob, sdtrain.runtime, sdtrain.reporting, sdtrain.strategies (base and shards).
"""
