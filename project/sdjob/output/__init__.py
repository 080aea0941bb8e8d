"""The layout of /output: step checkpoints, their fingerprint, and where a run resumes.

Start reading: layout.py.
May import: sdjob.files, sdjob.problems, sdjob.settings.
"""
