"""What the user sees and what a run records: text, JSON, without secrets.

Start reading: text.py.
May import: sdjob, sdlaunch.plan, sdlaunch.settings, sdlaunch.cluster, sdlaunch.inputs.
"""
