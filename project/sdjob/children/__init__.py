"""Child processes: started so that they end with this one, and functions that run in one within bounds.

Start reading: start.py, then bounded.py.
May import: sdjob.problems; start.py nothing of sdjob.
"""
