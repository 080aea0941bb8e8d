"""The layout of /output: step checkpoints, their fingerprint, and where a run resumes.

Start reading: layout.py.
May import: sdjob.dataset, sdjob.model, sdjob.settings, sdjob.problems.
"""
