"""The objective of latent diffusion: noising, target, and the weighted loss.

Start reading: diffusion.py.
May import: torch; loss.py and process.py know neither ranks nor files.
"""
