"""The other nodes of a job: waiting for them, and noticing that they have failed.

Start reading: meeting.py, before torchrun starts; then peers.py.
May import: what sdlaunch.supervise may import, and its lock, failure_report and processes.
"""
