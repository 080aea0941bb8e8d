"""From files to batches: sources, sampling, buckets, transforms, and caches of what is computed once.

Start reading: streams.py.
May import: torch, sdjob.dataset, sdtrain.runtime.
"""
