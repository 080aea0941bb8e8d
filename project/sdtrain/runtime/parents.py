"""Launcher and torchrun of a rank: it never trains on when one of them is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from sdjob import protocol
from sdjob.children.start import end_with


@dataclass(frozen=True)
class Parents:
    """The process ids of torchrun and the launcher, and the seconds that a rank has to save without them."""

    torchrun: int
    launcher: int | None
    grace: float

    @classmethod
    def of_this(cls, environ: Mapping[str, str] = os.environ) -> Parents | None:
        """Those of this process, which gets SIGTERM when torchrun dies, where the kernel offers that.

        None: it was started by hand, and may outlive the shell.
        """
        launcher = protocol.launcher_pid(environ)
        if launcher is None and "TORCHELASTIC_RUN_ID" not in environ:
            return None
        torchrun = os.getppid()
        end_with(torchrun, signal.SIGTERM)
        return cls(torchrun, launcher, float(environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or 30))

    def gone(self) -> bool:
        """Whether torchrun or the launcher has ended."""
        lost_launcher = self.launcher is not None and not psutil.pid_exists(self.launcher)
        return os.getppid() != self.torchrun or lost_launcher
