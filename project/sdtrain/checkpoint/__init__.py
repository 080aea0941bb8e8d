"""Step checkpoints: written beside training, committed by one rename, read by every strategy.

Start reading: checkpoint.py.
May import: torch, safetensors, sdjob.output, sdtrain.runtime.
"""
