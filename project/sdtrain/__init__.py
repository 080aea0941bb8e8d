"""The worker: fine-tunes Stable Diffusion. Run as `python -m sdtrain`, under torchrun or alone."""
