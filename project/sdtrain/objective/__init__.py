"""The objective of latent diffusion: noising, target, and the weighted loss.

Start reading: diffusion.py.
May import: torch; loss.py knows neither ranks nor files.
"""
