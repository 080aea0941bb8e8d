"""The worker: fine-tunes Stable Diffusion. Run as `python -m sdtrain`, under torchrun or alone.

Start reading: run.py, then loop.py.
May import: torch, diffusers, transformers, peft, sdjob. Never sdlaunch.
"""
