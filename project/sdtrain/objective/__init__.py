"""The objective of latent diffusion: noising, target, and the weighted loss.

Start reading: diffusion.py.
May import: torch, diffusers; process.py knows neither ranks nor files.
"""
