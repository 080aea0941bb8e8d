"""Train the embedded pipeline from scratch: `python -m sddemo.pretrain --output DIR`.

Start reading: __main__.py.
May import: torch, diffusers, sddemo.
"""
