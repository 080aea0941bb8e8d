"""Where a job runs: nodes, processes and devices, from the platform's variables and the machine.

Start reading: platforms.py, one function for each platform; then cluster.py.
May import: sdjob, sdlaunch.settings, sdlaunch.timeouts.
"""
