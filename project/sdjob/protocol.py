"""When signals that ask a job to stop are one request, and when a person insists: for launcher and worker alike."""

from __future__ import annotations

# A platform that signals every process, a terminal that closes, `timeout`: each of these signals the same process more
# than once, directly and through its group, its shell or its parent.
ONE_REQUEST = 3.0  # seconds
