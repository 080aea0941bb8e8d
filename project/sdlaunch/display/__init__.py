"""What the user sees and what a run records: text, JSON, redaction of secrets.

Start reading: text.py.
May import: sdjob, sdlaunch.plan.
"""
