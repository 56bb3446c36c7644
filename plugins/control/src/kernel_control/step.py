"""The boot steps `commands`, which imports the remote-control commands before anything is consumed, and `control`, which
listens on the worker's broker from a moment after its start to its end. Loop thread; light to import, as every worker
composes them."""

from __future__ import annotations

import importlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kernel_worker import Bootstep, Permission

if TYPE_CHECKING:
    from kernel_worker import Mailbox, StepContext
    from kernel_worker.worker import Worker

    from .listener import Listener

log = logging.getLogger("kernel_control")

SETTLING_S = 0.02
"""How long a new worker takes tasks before it listens."""
STOP_S = 1.0
READY_WAIT_S = 1.0
"""How long the line that says "ready" waits at most for remote control that cannot be had now. Tasks are taken meanwhile."""
SLOW_READY_WAIT_S = 5.0
"""The same for a broker that has not answered yet."""


class CommandsStep(Bootstep):
    """Fills the table of commands: a plugin that cannot be imported, or a name that two commands have, is told before a
    single message is taken."""

    name = "commands"
    requires = ("pool",)
    before = ("consumer",)

    def start(self, ctx: StepContext) -> None:
        from .application import application_commands

        ctx.worker.control.load()
        ctx.worker.control.add(application_commands(ctx.worker.app.commands))


class ControlStep(Bootstep):
    """Listens while the worker lives, the end of its shutdown included. The API is the step itself.

    :param permission: "read", "operate", "destroy", or None for the application's say and else all.
    """

    name = "control"
    requires = ("consumer",)

    def __init__(self, permission: str | None) -> None:
        self._permission = permission
        self._listener: Listener | None = None
        self._is_stopped = False
        self._is_expected = False

    @property
    def is_listening(self) -> bool:
        """Whether commands arrive now."""
        return self._listener is not None and self._listener.is_listening

    def wait(self, worker: Worker) -> None:
        """Until commands arrive, if they will. What the broker refuses must not delay the worker for long, and what it
        delays not for ever."""
        if self._is_expected:
            begun = time.monotonic()
            self._wait_until(begun + READY_WAIT_S, worker, lambda: self.is_listening)
            self._wait_until(begun + SLOW_READY_WAIT_S, worker, lambda: self.is_listening or self._is_away)

    def _wait_until(self, over: float, worker: Worker, is_done: Callable[[], bool]) -> None:
        worker.loop.run_until(lambda: is_done() or worker.stop_reason or worker.supervisor.failure, over)

    @property
    def _is_away(self) -> bool:
        return self._listener is not None and self._listener.is_away

    def start(self, ctx: StepContext) -> ControlStep:
        worker = ctx.worker
        settings = worker.app.settings
        if self._permission is None and settings.get("worker_enable_remote_control") is False:
            return self
        make = mailbox_factory(worker)
        if make is None:
            log.warning(
                "no remote control on %s: this kind of broker carries none (redis, amqp and sqlite do)",
                worker.broker_url,
                extra={"action": "control_unavailable"},
            )
            return self
        worker.control.permission = Permission(self._permission or "destroy")
        name = str(settings.get("control_exchange") or "celery")
        # The worker takes tasks first: neither the imports nor the connection delay its start.
        self._is_expected = True
        ctx.loop.call_later(SETTLING_S, self._listen, ctx, make, name)
        return self

    def _listen(self, ctx: StepContext, make: Callable[[], Mailbox], name: str) -> None:
        if not self._is_stopped:
            from .listener import Listener

            self._listener = Listener(ctx, make, name)
            self._listener.start()

    def stop(self, ctx: StepContext, deadline: float) -> None:
        self._is_stopped = True
        if self._listener is not None:
            self._listener.stop(min(deadline, time.monotonic() + STOP_S))

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, 0.0)


def mailbox_factory(worker: Any) -> Callable[[], Mailbox] | None:
    """Makes mailboxes on the worker's broker, on one after the other where several are named; None: there is no driver."""
    settings = worker.app.settings
    options: Mapping[str, Any] = settings.get("broker_transport_options") or {}
    name = str(settings.get("control_exchange") or "celery")
    drivers = worker.selection.mailboxes
    known = []
    for url in worker.broker_url.reveal().split(";"):
        scheme = url.partition("://")[0].lower()
        entry = drivers.get(scheme) or drivers.get(scheme.partition("+")[0])
        if entry is not None:
            known.append((entry.target, url))
    turns = itertools.cycle(known)

    def make() -> Mailbox:
        target, url = next(turns)
        module, _, attribute = target.partition(":")
        made: Mailbox = getattr(importlib.import_module(module), attribute)(url, options, name)
        return made

    return make if known else None
