"""The same job for another place, one module for each target; pure functions from a plan to text.

Start reading: task.py, which every target starts from.
May import: sdjob, sdlaunch.plan, sdlaunch.settings.
"""
