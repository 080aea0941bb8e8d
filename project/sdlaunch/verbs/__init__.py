"""The verbs that neither plan nor run a job, one module each.

Start reading: doctor.py for an example.
May import: sdjob, and every other part of sdlaunch.
"""
