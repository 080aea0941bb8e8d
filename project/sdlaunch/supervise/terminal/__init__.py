"""What a user sees of a job: lines in order, the bar of the current stage, and the last line.

Start reading: terminal.py.
May import: sdjob, sdlaunch.timeouts.
"""
