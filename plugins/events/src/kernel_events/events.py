"""What this worker tells the world: heartbeats, and task events while they are switched on. Loop thread.

Nothing is subscribed while task events are off, so the dispatcher does no work for them.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernel_worker import __version__
from kernel_worker.bus import Kind
from kernel_worker.types import OutcomeKind

from . import records
from .sender import HEARTBEAT, Sender

if TYPE_CHECKING:
    from kernel_worker.request import Request
    from kernel_worker.types import Outcome
    from kernel_worker.worker import Worker

    from .options import EventsOptions
    from .outlets import Outlet

TOLD = 10_000
"""Tasks remembered as received that have not started, so that one that was parked meanwhile is not told twice."""
OFFSET_S = 30.0
"""For so long the offset from UTC is not looked up again."""
ASKED_FREQ_S = 5
"""What a heartbeat that was asked for says of the interval, as Celery's."""


class Events:
    """What this worker tells the world. Loop thread."""

    def __init__(self, worker: Worker, supervisor: Any, options: EventsOptions, outlets: Sequence[Outlet]) -> None:
        self._worker = worker
        self._supervisor = supervisor
        self.interval_s = max(options.heartbeat_interval, *(outlet.heartbeat_s for outlet in outlets))
        self._always = options.task_events
        self._detach: Callable[[], None] | None = None
        self._is_online = False
        self._processed = 0
        self._told: OrderedDict[str, None] = OrderedDict()
        self._node = worker.node
        self._pid = os.getpid()
        self._offset, self._offset_until = 0.0, 0.0
        self.sender = Sender(itertools.cycle(outlets).__next__, buffer=options.buffer)

    # -- task events: on and off

    @property
    def is_enabled(self) -> bool:
        """Whether task events are sent."""
        return self._detach is not None

    @property
    def is_permanent(self) -> bool:
        """Whether they were switched on at start: remote control does not switch them off, as in Celery."""
        return self._always

    def enable(self) -> None:
        """Send task events from now on."""
        if self._detach is None:
            self._detach = self._worker.bus.attach(
                {
                    Kind.RECEIVED: self._received,
                    Kind.STARTED: self._started,
                    Kind.SUCCEEDED: self._succeeded,
                    Kind.FAILED: self._failed,
                    Kind.RETRIED: self._retried,
                    Kind.REJECTED: self._rejected,
                    Kind.REVOKED: self._revoked,
                    Kind.EXPIRED: self._expired,
                    Kind.LOST: self._lost,
                    Kind.DEAD: self._dead,
                }
            )
            self._supervisor.set_verbose(True)

    def disable(self) -> None:
        """Send no task events any more; those that wait are still sent."""
        if self._detach is not None:
            self._detach()
            self._detach = None
            self._told.clear()
            self._supervisor.set_verbose(False)

    # -- worker events

    def online(self) -> None:
        """The worker is ready."""
        self._is_online = True
        self._send("worker-online", self._state(self.interval_s))

    def heartbeat(self) -> None:
        """One heartbeat; before the worker is ready there is none."""
        if self._is_online:
            self._send(HEARTBEAT, self._state(self.interval_s))

    def asked_heartbeat(self) -> None:
        """One heartbeat because somebody wants to know who is there."""
        self._send(HEARTBEAT, {"freq": ASKED_FREQ_S, **_software()})

    def stop(self, deadline: float) -> None:
        """Say good-bye, and send what waits until the monotonic deadline. Idempotent."""
        self.disable()
        if self._is_online:
            self._is_online = False
            self._send("worker-offline", self._state(self.interval_s))
        self.sender.stop(deadline)

    def _state(self, freq: float) -> dict[str, Any]:
        dispatcher = self._worker.dispatcher
        active = 0
        if dispatcher is not None:
            running = len(dispatcher.in_flight)
            # What was begun; never falls, although what comes back unrun is begun again.
            self._processed = max(self._processed, dispatcher.completed + running)
            active = min(running, self._worker.concurrency)
        return {
            "freq": freq,
            "active": active,
            "processed": self._processed,
            "loadavg": records.load_average(),
            **_software(),
        }

    # -- what happens to requests

    def _received(self, request: Request, outcome: Outcome | None) -> None:
        fields = records.received(request)
        told, uuid = self._told, fields["uuid"]
        if uuid in told:
            return  # it was parked, or given back, and comes again
        is_over = request.conclude in (OutcomeKind.UNKNOWN, OutcomeKind.REVOKED)
        if is_over or 0.0 < request.expires <= time.time():
            return  # its end is all there is to tell
        told[uuid] = None
        if len(told) > TOLD:
            told.popitem(last=False)
        self._send("task-received", fields)

    def _started(self, request: Request, outcome: Outcome | None) -> None:
        self._told.pop(records.task_id(request), None)
        self._send("task-started", records.started(request))

    def _succeeded(self, request: Request, outcome: Outcome) -> None:
        self._send("task-succeeded", records.succeeded(request, outcome))

    def _failed(self, request: Request, outcome: Outcome) -> None:
        self._send("task-failed", records.failed(request, outcome))

    def _retried(self, request: Request, outcome: Outcome) -> None:
        self._send("task-retried", records.retried(request, outcome))

    def _rejected(self, request: Request, outcome: Outcome) -> None:
        if not outcome.requeue:
            self._send("task-failed", records.failed(request, outcome))
        if not request.acked:
            self._send("task-rejected", records.rejected(request, outcome))

    def _revoked(self, request: Request, outcome: Outcome) -> None:
        self._told.pop(records.task_id(request), None)
        signum = request.signum
        self._send("task-revoked", records.revoked(request, terminated=signum is not None, signum=signum))

    def _expired(self, request: Request, outcome: Outcome) -> None:
        self._told.pop(records.task_id(request), None)
        self._send("task-revoked", records.revoked(request, expired=True))

    def _lost(self, request: Request, outcome: Outcome) -> None:
        if outcome.kind is OutcomeKind.CANCELLED:
            self._send("task-cancelled", records.cancelled(request))

    def _dead(self, request: Request, outcome: Outcome) -> None:
        self._told.pop(records.task_id(request), None)
        if outcome.kind is OutcomeKind.UNKNOWN:
            self._send("task-failed", records.failed(request, outcome))

    def _send(self, event_type: str, fields: Mapping[str, Any]) -> None:
        now = time.time()
        if now >= self._offset_until:
            self._offset, self._offset_until = records.utc_offset(now), now + OFFSET_S
        self.sender.put(
            {
                "hostname": self._node,
                "utcoffset": self._offset,
                "pid": self._pid,
                "clock": self._worker.clock.forward(),
                **fields,
                "timestamp": now,
                "type": event_type,
            }
        )


def _software() -> dict[str, str]:
    return {"sw_ident": "kernel-worker", "sw_ver": __version__, "sw_sys": os.uname().sysname}
