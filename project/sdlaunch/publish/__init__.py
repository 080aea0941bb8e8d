"""Publishing a result: to the Hugging Face hub, or to any file system that fsspec knows.

Start reading: publish.py.
May import: sdjob, sdlaunch; upload.py, which runs in a process of its own, also huggingface_hub and fsspec.
"""
