"""The launcher: reads settings, proves that the job can run, and supervises it.

Start reading: cli.py, then plan.py.
May import: sdjob. Never torch, diffusers, transformers, colossalai or sdtrain.
"""
