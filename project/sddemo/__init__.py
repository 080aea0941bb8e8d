"""A small synthetic world, a Stable Diffusion pipeline that has learned it, and a judge of its images.

Start reading: write_demo.py (what `make demo` uses), scenes.py (the world).
May import: torch, diffusers; write_demo needs neither.
"""
