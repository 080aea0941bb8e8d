"""Verbs that neither plan nor run a job, one module each, called from the table in cli.py.

Start reading: doctor.py for an example.
May import: sdjob, and every other part of sdlaunch.
"""
