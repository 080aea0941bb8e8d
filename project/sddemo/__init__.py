"""A small drawn world, a Stable Diffusion pipeline that has learned it, and the means to judge its pictures."""
