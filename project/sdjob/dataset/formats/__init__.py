"""Dataset formats, one module each.

Start reading: metadata.py for an example.
May import: sdjob.files, sdjob.problems; pyarrow lazily.
"""
