"""Where a job runs: nodes, processes and devices, from the platform's variables and the machine.

Start reading: resolve.py.
May import: sdjob, sdlaunch.settings.
"""
