"""Programs alongside training: the benchmark table, synthetic models, and the worker's part of `doctor`.

Start reading: benchmark.py.
May import: everything in sdtrain.
"""
