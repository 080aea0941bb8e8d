"""The contract of launcher and worker: settings, files, exit codes, and what a model or dataset on disk is.

Start reading: settings/run_spec.py (every setting), protocol.py (what both exchange), exit_codes.py.
May import: pydantic; Pillow, pyarrow and yaml lazily. Never torch, diffusers, sdlaunch or sdtrain.
"""
