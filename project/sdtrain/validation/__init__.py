"""Validation: samples of fixed prompts and seeds, and the loss on held-out images.

Start reading: validation.py.
May import: torch, sdtrain.model.generation, sdtrain.objective, sdtrain.data.
"""
