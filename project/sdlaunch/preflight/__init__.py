"""Everything that is checked before training starts; all problems are reported at once.

Start reading: checks.py, the list of checks.
May import: sdjob, sdlaunch.settings, sdlaunch.cluster, sdlaunch.inputs, sdlaunch.publish,
sdlaunch.duration, sdlaunch.timeouts.
"""
