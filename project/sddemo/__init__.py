"""A small drawn world, a Stable Diffusion pipeline that has learned it, and a judge of its pictures."""
