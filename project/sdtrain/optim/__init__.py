"""Optimizers, learning-rate schedules and EMA.

Start reading: optimizers.py.
May import: torch; bitsandbytes, transformers and prodigyopt lazily.
"""
