"""The parts of a pipeline: loading, the trainable model, attention backends, single files.

Start reading: load.py.
May import: torch, diffusers, transformers, peft, sdjob.model.
"""
