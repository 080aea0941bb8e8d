"""What the verbs of VERBS in cli.py do besides a plan; emit and publish have folders of their own.

Start reading: request.py, which reads the command line; then doctor.py, a verb.
May import: sdjob, and every other part of sdlaunch.
"""
