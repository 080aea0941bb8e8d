"""The process and its surroundings: process group, devices, heartbeat, stop requests, exit notes.

Start reading: distributed.py.
May import: torch, psutil, sdjob.
"""
