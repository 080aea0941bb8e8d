"""The result: a pipeline or a LoRA that diffusers loads, other layouts, and its model card.

Start reading: export.py.
May import: torch, diffusers, peft, safetensors, sdjob.model.
"""
