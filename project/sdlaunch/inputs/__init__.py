"""What a job reads: mounts, and what is fetched from the hub or a package index when allowed.

Start reading: contents.py.
May import: sdjob, sdlaunch.settings, sdlaunch.timeouts.
"""
