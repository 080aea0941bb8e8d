"""From what the user wrote in four sources to validated settings, each with the source that won.

Start reading: settings.py.
May import: sdjob, sdlaunch.cluster.platforms.
"""
