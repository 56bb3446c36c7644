"""What can be asked of a running worker, and done to it: the kernel's side of remote control.

Loop thread only. Replies are JSON-able, with the keys and types that Celery's clients know.
"""

from __future__ import annotations

import ast
import itertools
import signal as signals
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .types import QueueSpec
from .wire import Frame, pack_json

if TYPE_CHECKING:
    from .request import Request
    from .worker import Worker

MAX_READ_ARGUMENTS = 200
"""Requests of one answer whose shown arguments are read back into values; those behind them stay text."""
ANSWER_S = 1.0
"""How long the application may take for a remote-control command of its own."""
MAX_CALLS = 50
DEFAULT_PRIORITY = 6
"""Of entries in `scheduled`: Celery's number for its timer."""


class Operations:
    """Requests, queues and pool of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._specs: dict[str, QueueSpec] = {}
        """Queues the worker consumes from or is paused for, in order."""
        self._paused: set[str] = set()
        self._calls: dict[int, Callable[[Any], object]] = {}
        self._numbers = itertools.count(1)
        self.blocked: frozenset[str] = frozenset()
        """Queues that have as many tasks running as `-Q name=N` allows; see `QueueCaps`."""
        self.revoked_ids: Callable[[], list[str]] = list
        """The ids of revoked tasks; set by the plugin that keeps them."""
        self.merge_revoked: Callable[[Sequence[str]], None] = lambda ids: None
        """Take over revoked ids from a peer; set by the same plugin."""

    # -- requests

    def active(self, *, safe: bool = False) -> list[dict[str, Any]]:
        """Requests that run now.

        :param safe: arguments as text, as the sender showed them.
        """
        return self._describe(self._running(), safe)

    def reserved(self, *, safe: bool = False) -> list[dict[str, Any]]:
        """Requests that were received and do not run yet."""
        return self._describe([(request, None) for request in self._reserved()], safe)

    def scheduled(self, *, safe: bool = False) -> list[dict[str, Any]]:
        """Requests this worker holds until their time; those the broker holds belong to no worker."""
        parked = sorted(self._worker.dispatcher.parked, key=lambda request: request.eta)
        described = self._describe([(request, None) for request in parked], safe)
        return [
            {"eta": _iso(request.eta), "priority": DEFAULT_PRIORITY, "request": info}
            for request, info in zip(parked, described, strict=True)
        ]

    def query(self, ids: Iterable[str]) -> dict[str, list[Any]]:
        """`{id: [state, info]}` of those this worker holds; states are active, reserved and scheduled."""
        wanted = set(ids)
        found: dict[str, list[Any]] = {}
        for state, requests in (
            ("scheduled", [(request, None) for request in self._worker.dispatcher.parked]),
            ("reserved", [(request, None) for request in self._reserved()]),
            ("active", self._running()),
        ):
            asked = [each for each in requests if each[0].id in wanted]
            found.update(
                (request.id, [state, info])
                for (request, _), info in zip(asked, self._describe(asked, False), strict=True)
            )
        return found

    def totals(self) -> dict[str, int]:
        """How many runs of each task have ended here."""
        return dict(self._worker.dispatcher.totals)

    def _running(self) -> list[tuple[Request, float | None]]:
        found: list[tuple[Request, float | None]] = []
        now, unix_now = time.monotonic(), time.time()
        for executor in self._worker.supervisor.executors.values():
            for slot in range(executor.slots if executor.outstanding else 0):
                tag, began, _ = executor.board.read(slot)
                request = executor.outstanding.get(tag)
                if request is not None and request.conclude is None:
                    found.append((request, unix_now - (now - began)))
        return found

    def _reserved(self) -> list[Request]:
        dispatcher = self._worker.dispatcher
        running = {request.tag for request, _ in self._running()}
        held = [request for tag, request in dispatcher.in_flight.items() if tag not in running]
        return [request for request in [*held, *dispatcher.ready] if request.conclude is None]

    def _describe(self, requests: Sequence[tuple[Request, float | None]], safe: bool) -> list[dict[str, Any]]:
        node = self._worker.node
        safe = safe or len(requests) > MAX_READ_ARGUMENTS
        return [_info(request, began, node, safe) for request, began in requests]

    def terminate(self, task_id: str, signal: str | int | None = None) -> bool:
        """End a running task for good: its state becomes REVOKED, its message is acknowledged.

        Where a process runs one task at a time, the process is killed and replaced, whatever the signal; elsewhere
        an exception is raised inside the task. What waited at the same process goes to others, uncounted.

        :param signal: name or number of a signal.
        :return: whether it runs here.
        :raises ValueError: there is no such signal.
        """
        number = self.signal_number(signal)
        found = [request for request, _ in self._running() if request.id == task_id]
        for request in found:  # a message that was sent twice may run twice
            self._worker.dispatcher.terminate(request, number)
        return bool(found)

    @staticmethod
    def signal_number(signal: str | int | None) -> int:
        """The number of a signal: a number, or a name with or without "SIG" in any case; None = SIGTERM.

        :raises ValueError: there is none.
        """
        if signal is None:
            return signals.SIGTERM
        try:
            if isinstance(signal, str) and not signal.isdigit():
                name = signal.upper()
                return signals.Signals[name if name.startswith("SIG") else f"SIG{name}"]
            return signals.Signals(int(signal))
        except (KeyError, ValueError):
            raise ValueError(f"there is no signal {signal!r:.40}") from None

    def set_time_limits(self, task: str, soft: float | None, hard: float | None) -> bool:
        """Limits in seconds of the runs that are received from now on; None: the worker's own.

        :return: whether the application has such a task.
        """
        return bool(self._worker.dispatcher.set_time_limits(task, soft, hard))

    def call_application(self, name: str, arguments: Mapping[str, Any], done: Callable[[Any], object]) -> None:
        """Have an executor answer a remote-control command of the application; `done(reply)` follows, with an error
        when there is no answer within `ANSWER_S`. The executor that has least to do is asked."""
        handles = [h for h in self._worker.supervisor.executors.values() if h.up and not h.retiring]
        if not handles or len(self._calls) >= MAX_CALLS:
            done({"error": f"{name}: {'too many calls are open' if handles else 'no executor is up'}"})
            return
        self._worker.dispatcher.on_answer = self._answered
        number = next(self._numbers)
        handle = min(handles, key=lambda handle: len(handle.outstanding))
        handle.channel.queue(pack_json(Frame.CALL, {"number": number, "name": name, "arguments": dict(arguments)}))
        overdue = {"error": f"{name}: no answer of executor {handle.pid} within {ANSWER_S:g} s"}
        self._calls[number] = done
        self._worker.loop.call_later(ANSWER_S, self._answered, number, overdue)

    def _answered(self, number: int, reply: Any) -> None:
        self._calls.pop(number, lambda reply: None)(reply)

    # -- queues

    @property
    def queues(self) -> list[QueueSpec]:
        """The queues that are consumed from, paused ones left out."""
        return [spec for spec in self._known().values() if spec.name not in self._paused]

    @property
    def paused(self) -> list[str]:
        """The queues that are paused."""
        return [name for name in self._known() if name in self._paused]

    def add_queue(self, spec: QueueSpec) -> None:
        """Consume from one more queue; one that is known with another binding is bound anew.

        :raises ValueError: it does not exist and `task_create_missing_queues` is off.
        """
        known = {each.name: each for each in self._worker.app.queues}
        if spec.name not in known and self._worker.app.settings.get("task_create_missing_queues") is False:
            raise ValueError(f"queue {spec.name!r} is not in task_queues, and task_create_missing_queues is off")
        if spec == QueueSpec(spec.name):  # only the name was given
            spec = known.get(spec.name, spec)
        self._known()[spec.name] = spec
        self._paused.discard(spec.name)
        self._consume()

    def cancel_queue(self, name: str) -> bool:
        """Take nothing more from a queue; what was received is done. Whether it was consumed from."""
        was_known = self._known().pop(name, None) is not None
        self._paused.discard(name)
        self._consume()
        return was_known

    def pause(self, names: Iterable[str] = ()) -> list[str]:
        """Take nothing from these queues until `resume`; none named: from any.

        :return: all that are paused then.
        :raises ValueError: the worker does not consume from one of them.
        """
        self._paused |= self._named(names)
        self._consume()
        return self.paused

    def resume(self, names: Iterable[str] = ()) -> list[str]:
        """Undo `pause`; none named: for all. The queues that are consumed from then.

        :raises ValueError: as `pause`.
        """
        self._paused -= self._named(names)
        self._consume()
        return [spec.name for spec in self.queues]

    def block(self, names: frozenset[str]) -> None:
        """Take nothing from these for the moment: as many of their tasks run as may."""
        if names != self.blocked:
            self.blocked = names
            self._consume()

    def _named(self, names: Iterable[str]) -> set[str]:
        known = self._known()
        wanted = set(names) or set(known)
        if strange := sorted(wanted - set(known)):
            raise ValueError(f"this worker does not consume from {strange[0]!r} (but from {', '.join(known)})")
        return wanted

    def _known(self) -> dict[str, QueueSpec]:
        if not self._specs:
            host = self._worker.broker_host
            self._specs = {spec.name: spec for spec in host.queues}
            host.on_queues_refused = self._revert
        return self._specs

    def _revert(self) -> None:
        """The broker refused the last change: only what it takes from, or did before, is known."""
        good = {spec.name for spec in self._worker.broker_host.queues} | self._paused | self.blocked
        self._specs = {name: spec for name, spec in self._specs.items() if name in good}

    def _consume(self) -> None:
        self._worker.broker_host.change_queues([spec for spec in self.queues if spec.name not in self.blocked])

    # -- the worker

    def set_concurrency(self, count: int) -> int:
        """Grow or shrink the pool; see `Worker.set_concurrency`."""
        return self._worker.set_concurrency(count)

    @property
    def concurrency(self) -> int:
        """Tasks that run at once."""
        return self._worker.concurrency

    def restart_pool(self) -> int:
        """Replace every executor when it has finished what it holds. How many there are."""
        supervisor = self._worker.supervisor
        handles = [handle for handle in supervisor.executors.values() if not handle.retiring]
        for handle in handles:
            supervisor.succession.replace(handle, "the pool is restarted")
        return len(handles)

    def shutdown(self, reason: str = "remote control") -> None:
        """Stop the worker as a SIGTERM does."""
        self._worker.stop(reason)


class QueueCaps:
    """How many tasks of a queue run at once in this worker (`-Q video=2,mail`). An admission filter: what is too much
    goes back to its queue at once, and nothing is fetched from there until one has ended."""

    def __init__(self, caps: Mapping[str, int], worker: Worker) -> None:
        self._caps = dict(caps)
        self._worker = worker
        self._counts: dict[str, int] = {}
        worker.loop.at_turn_end(self._recount)

    def is_full(self, queue: str) -> bool:
        """Whether one more would be too much; counts it if not."""
        count = self._counts.get(queue, 0)
        is_full = queue in self._caps and count >= self._caps[queue]
        self._counts[queue] = count + (not is_full)
        return is_full

    def _recount(self) -> None:
        """At the end of each turn. Deliveries are few where there are caps: the prefetch is bounded."""
        dispatcher = self._worker.dispatcher
        if dispatcher is None:
            return
        counts = dict.fromkeys(self._caps, 0)
        for request in [*dispatcher.ready, *dispatcher.in_flight.values()]:
            if request.delivery.queue in counts:
                counts[request.delivery.queue] += 1
        self._counts = counts
        if not dispatcher.closing:
            self._worker.operations.block(frozenset(name for name, cap in self._caps.items() if counts[name] >= cap))


def _info(request: Request, began: float | None, node: str, safe: bool) -> dict[str, Any]:
    delivery, headers = request.delivery, request.delivery.headers
    route = delivery.properties.get("delivery_info")
    route = route if isinstance(route, Mapping) else {}
    return {
        "id": request.id,
        "name": headers.get("shadow") or request.task,
        "args": _shown(headers.get("argsrepr"), (), safe),
        "kwargs": _shown(headers.get("kwargsrepr"), {}, safe),
        "type": request.task,
        "hostname": node,
        "time_start": began,
        "acknowledged": request.acked,
        "delivery_info": {
            "exchange": route.get("exchange", ""),
            "routing_key": route.get("routing_key", delivery.queue),
            "priority": delivery.properties.get("priority"),
            "redelivered": delivery.redelivered,
        },
        "worker_pid": request.executor.pid if began is not None and request.executor is not None else None,
    }


def _shown(text: Any, empty: Any, safe: bool) -> Any:
    """Arguments as the sender showed them (the body is never read here); values again where the text is one."""
    if not isinstance(text, str):
        return repr(empty) if safe else (list(empty) if isinstance(empty, tuple) else empty)
    if safe or len(text) > 4096:
        return text[:4096]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):  # cut, or no literals: stays text
        return text
    value = list(value) if isinstance(value, tuple) else value
    return value if isinstance(value, type(empty) if isinstance(empty, dict) else list) and _is_json(value) else text


def _is_json(value: Any, depth: int = 20) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(k, str) and _is_json(v, depth - 1) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_json(each, depth - 1) for each in value)
    return value is None or isinstance(value, (str, int, float, bool))


def _iso(unix: float) -> str:
    try:
        return datetime.fromtimestamp(unix, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ""
