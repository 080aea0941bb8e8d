"""Runs the command: output, signals, the two-phase stop, hangs, and the verdict at the end.

Start reading: supervisor.py.
May import: sdjob, sdlaunch.plan, sdlaunch.cluster, sdlaunch.display, sdlaunch.preflight, sdlaunch.inputs,
sdlaunch.publish, sdlaunch.command, sdlaunch.timeouts.
"""
