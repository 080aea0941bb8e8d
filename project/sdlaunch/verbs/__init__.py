"""What check, doctor and help do beyond a plan; VERBS in cli.py lists all verbs, and has run, plan and emit.

Start reading: doctor.py for an example.
May import: sdjob, and every other part of sdlaunch.
"""
