"""The thread that sends events: bounded buffer, batches, its own connection; consumption never waits for it.

`put` on any thread; everything else of the connection on the thread kw-events. While the broker is away the buffer
fills, then task events are dropped and counted; heartbeats of that time are worth nothing and are left out.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .defaults import BUFFER
from .envelope import MULTI, Event, EventMessage, routing_key
from .outlets import Outlet

log = logging.getLogger(__name__)

BATCH = 200
"""Task events in one message at most."""
GATHER_S = 0.02
"""How long an event waits for company."""
KEEP_ALIVE_S = 5.0
BACKOFF_S = (0.2, 10.0)
COMPLAIN_S = 60.0
"""The same trouble is told once in this time."""

HEARTBEAT = "worker-heartbeat"


class Sender:
    """Sends events in the order they were put.

    :param outlet: gives where to send to; asked again after each loss. Used on the sending thread only.
    """

    def __init__(self, outlet: Callable[[], Outlet], *, buffer: int = BUFFER) -> None:
        self._make_outlet = outlet
        self._outlet: Outlet | None = None
        self._limit = buffer
        self._waiting: deque[Event] = deque()
        self._sending: list[Event] = []
        """Taken from those that wait, until it is known that they were sent."""
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._deadline = float("inf")
        self._complained = 0.0
        self._thread = threading.Thread(target=self._run, name="kw-events", daemon=True)
        self.is_away = False
        """Whether the last attempt to send failed."""
        self.sent = 0
        self.dropped = 0

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queue one event. Never blocks, never raises: what finds no room is dropped and counted."""
        waiting = self._waiting
        if self.is_away and event["type"] == HEARTBEAT:
            return
        if len(waiting) >= self._limit and not event["type"].startswith("worker-"):
            self.dropped += 1
            return
        waiting.append(event)
        if not self._wake.is_set():
            self._wake.set()

    def stop(self, deadline: float) -> None:
        """Send what waits until the monotonic `deadline`, and end. Idempotent; also when never started."""
        self._deadline = deadline
        self._ending.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def counters(self) -> Mapping[str, int]:
        """For statistics."""
        return {"sent": self.sent, "dropped": self.dropped, "waiting": len(self._waiting) + len(self._sending)}

    # -- the thread

    def _run(self) -> None:
        pause = BACKOFF_S[0]
        while True:
            self._wake.wait(KEEP_ALIVE_S)
            self._wake.clear()
            if not self._ending.is_set():
                self._ending.wait(GATHER_S)
            try:
                self._send_waiting()
                self.is_away, pause = False, BACKOFF_S[0]
            except Exception as error:  # the boundary of the thread: events are lost, the worker goes on
                self.is_away = True
                self._complain(error)
                self._drop_connection()
                if self._ending.is_set() or time.monotonic() >= self._deadline:
                    break
                self._ending.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, BACKOFF_S[1])
                self._wake.set()
                continue
            if self._ending.is_set() and not self._has_work:
                break
        self._drop_connection()

    def _send_waiting(self) -> None:
        outlet = self._outlet
        if outlet is None:
            outlet = self._outlet = self._make_outlet()
        if not self._has_work:
            outlet.keep_alive()
        while self._has_work and time.monotonic() < self._deadline:
            sending = self._sending
            while self._waiting and len(sending) < BATCH:
                sending.append(self._waiting.popleft())
            outlet.publish(_messages(sending))
            self.sent += len(sending)
            sending.clear()

    @property
    def _has_work(self) -> bool:
        return bool(self._waiting or self._sending)

    def _drop_connection(self) -> None:
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.close()

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained < COMPLAIN_S and self._complained:
            return
        self._complained = now
        extra: dict[str, Any] = {"action": "events_unsent", "dropped": self.dropped}
        if isinstance(error, (ConnectionError, OSError, ValueError)):
            log.warning("events cannot be sent: %s; %d dropped so far", error, self.dropped, extra=extra)
        else:
            log.error("events cannot be sent", exc_info=error, extra=extra)


def _messages(events: Iterable[Event]) -> list[EventMessage]:
    """Neighbouring task events share a message, worker events go alone."""
    messages: list[EventMessage] = []
    run: list[Event] = []
    for event in events:
        if event["type"].startswith("task-"):
            run.append(event)
            continue
        if run:
            messages.append(EventMessage(MULTI, run))
            run = []
        messages.append(EventMessage(routing_key(event["type"]), (event,)))
    if run:
        messages.append(EventMessage(MULTI, run))
    return messages
