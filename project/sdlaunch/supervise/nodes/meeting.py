"""The nodes of a job before torchrun starts on this one: the name of node 0 is looked up and its port tried.

Nodes start at different times, so that both are waited for, and at least every half minute a line says for what.
torchrun itself would fail after a minute, or wait in silence.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sdjob.problems import JobError, no_hardware
from sdlaunch.cluster import route as routes
from sdlaunch.cluster.route import Route
from sdlaunch.plan import JobPlan
from sdlaunch.timeouts import NoAnswer, Task

_SAY_EVERY = 25.0  # seconds: with an attempt in between, at most 30
_FIRST = 10.0  # seconds without a line
_ATTEMPT = 3.0  # seconds for a connection
_PAUSE = 1.0  # seconds between two attempts
_POLL = 0.2  # seconds


@dataclass
class Reminder:
    """Says what is waited for: soon, and then at least every half minute. `limit`: how long, in seconds."""

    say: Callable[[str], None]
    limit: float
    started: float = field(default_factory=time.monotonic)
    due: float = _FIRST

    @property
    def waited(self) -> float:
        return time.monotonic() - self.started

    def waiting(self, text: str) -> None:
        if self.waited >= self.due:
            self.due = self.waited + _SAY_EVERY
            self.say(f"waiting for {text} ({self.waited:.0f} s of {self.limit:g} s)")


class Interrupted(Exception):
    """The job is over while it waits."""


@dataclass(frozen=True)
class Meeting:
    """How this node finds node 0."""

    plan: JobPlan
    say: Callable[[str], None]
    is_over: Callable[[], bool]

    def reach(self) -> Route | None:
        """The route to node 0, which answers if this is another node; None: there is one node only.

        Raises Interrupted as soon as the job is over; JobError (69): the name does not resolve, or node 0 does not
        answer.
        """
        if self.plan.cluster.endpoint is None:
            return None
        route = self._look_up()
        return route if self.plan.cluster.node_rank == 0 else self._connect(route)

    @property
    def _endpoint(self) -> str:
        return self.plan.cluster.endpoint or ""

    def _route_task(self) -> Task[Route]:
        return Task(functools.partial(routes.find, self._endpoint, self.plan.cluster.node_rank))

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            if self.is_over():
                raise Interrupted
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(_POLL, left))

    def _look_up(self) -> Route:
        host, _ = routes.host_and_port(self._endpoint)
        limit = float(self.plan.settings["check_timeout"].value)
        reminder, attempt, reason = Reminder(self.say, limit), self._route_task(), "no answer"
        while reminder.waited < limit:
            try:
                return attempt.result(time.monotonic() + _POLL)
            except NoAnswer:  # it may hang: a second attempt would too
                self._pause(0)
            except OSError as error:
                reason = error.strerror or str(error)
                self._pause(_PAUSE)
                attempt = self._route_task()
            reminder.waiting(f"the name of node 0, {host}: {reason}")
        found = f"{host} ({self.plan.settings['MASTER_ADDR'].source}) cannot be looked up on {os.uname().nodename}"
        remedy = (
            "Set MASTER_ADDR to the address of node 0, or to a name that all nodes resolve; "
            "raise check_timeout if the name appears later."
        )
        raise JobError(no_hardware("MASTER_ADDR", f"{found} within {limit:g} s: {reason}", remedy))

    def _connect(self, route: Route) -> Route:
        """The route once node 0 accepts a connection; its address may change while it starts again."""
        host, port = routes.host_and_port(self._endpoint)
        limit = float(self.plan.settings["rendezvous_timeout"].value)
        reminder, attempt = Reminder(self.say, limit), self._route_task()
        here = f"node {self.plan.cluster.node_rank} of {self.plan.cluster.nodes}"
        while reason := _why_unreachable(route.target, port):
            where = f"{host}:{port}" if route.target == host else f"{host}:{port} ({route.target})"
            reminder.waiting(f"node 0 at {where}, on {here}: {reason}")
            if reminder.waited > limit:
                found = f"node 0 at {where} does not answer {here} within {limit:g} s: {reason}"
                raise JobError(no_hardware("MASTER_ADDR", found, _NOT_THERE))
            self._pause(_PAUSE)
            try:
                route = attempt.result(time.monotonic())
                attempt = self._route_task()
            except NoAnswer:
                pass
            except OSError:  # the name has gone meanwhile
                attempt = self._route_task()
        return route


_NOT_THERE = (
    "Start the job on node 0 too; check MASTER_ADDR and MASTER_PORT, and that no firewall separates the nodes; "
    "raise rendezvous_timeout if node 0 starts later."
)


def _why_unreachable(address: str, port: int) -> str:
    """Why no connection can be made; empty: one was made, and closed again."""
    try:
        socket.create_connection((address, port), timeout=_ATTEMPT).close()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""
