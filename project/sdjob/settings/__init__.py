"""Every training setting: its schema, its spellings, and which settings work together.

Start reading: run_spec.py, then compatibility.py.
May import: sdjob.problems.
"""
