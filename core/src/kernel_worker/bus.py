"""Events of requests, for whoever subscribed; costs a tuple look-up when nobody did.

Plugins register at composition (`kw_subscribe`); `freeze` compiles the lists into tuples. What is switched on and off
while the worker runs uses `attach`. Callbacks run on the loop thread, once per message. One that raises is logged and
goes on being called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

log = logging.getLogger("kernel_worker.bus")


class Kind(IntEnum):
    """What happened to a request. Callbacks get (request, outcome); outcome is None until it ended."""

    RECEIVED = 0
    STARTED = 1  # handed to an executor
    SUCCEEDED = 2
    FAILED = 3
    RETRIED = 4
    REJECTED = 5
    REVOKED = 6
    EXPIRED = 7
    LOST = 8
    DEAD = 9


Subscriber = Callable[[Any, Any], None]


class Bus:
    """Subscriptions per kind of event."""

    def __init__(self) -> None:
        self._lists: list[list[Subscriber]] = [[] for _ in Kind]
        self._frozen = False
        self.subscribers: tuple[tuple[Subscriber, ...], ...] = ((),) * len(Kind)
        """Indexed by `Kind`; the hot path loops over `subscribers[kind]`."""

    def on(self, kind: Kind, callback: Subscriber) -> None:
        """Subscribe. At composition only: after `freeze` it raises RuntimeError."""
        if self._frozen:
            raise RuntimeError("the bus is frozen: subscribe in kw_subscribe")
        self._lists[kind].append(callback)

    def freeze(self) -> None:
        """Compile the subscriptions. Called once, before the first step starts."""
        self.subscribers = tuple(tuple(_guarded(c) for c in callbacks) for callbacks in self._lists)
        self._frozen = True

    def attach(self, callbacks: Mapping[Kind, Subscriber]) -> Callable[[], None]:
        """Subscribe while the worker runs. Loop thread, after `freeze`.

        :return: ends the subscription; may be called more than once.
        """
        added = {kind: _guarded(callback) for kind, callback in callbacks.items()}
        self.subscribers = tuple(
            (*known, added[kind]) if kind in added else known
            for kind, known in zip(Kind, self.subscribers, strict=True)
        )

        def detach() -> None:
            self.subscribers = tuple(
                tuple(callback for callback in known if callback is not added.get(kind))
                for kind, known in zip(Kind, self.subscribers, strict=True)
            )

        return detach

    def emit(self, kind: Kind, request: Any, outcome: Any = None) -> None:
        """Tell the subscribers of one kind."""
        for callback in self.subscribers[kind]:
            callback(request, outcome)


def _guarded(callback: Subscriber) -> Subscriber:
    def call(request: Any, outcome: Any) -> None:
        try:
            callback(request, outcome)
        except Exception:  # a subscriber's bug must not stop the dispatcher
            log.exception("subscriber %r failed", callback, extra={"action": "subscriber_failed"})

    return call
