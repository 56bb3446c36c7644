"""Where messages go: queues, and the routes that choose among them (wire-protocol §10)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .exceptions import ConfigError, QueueNotFound
from .settings import Settings


class Queue:
    """A queue and its binding.

    :param exchange: "" means: an exchange named like the queue.
    :param routing_key: "" means: the queue's name.
    :param queue_arguments: for the broker, e.g. {"x-max-priority": 10}.
    """

    __slots__ = ("exchange", "exchange_type", "name", "queue_arguments", "routing_key")

    def __init__(
        self,
        name: str,
        exchange: str = "",
        exchange_type: str = "direct",
        routing_key: str = "",
        queue_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.exchange = exchange
        self.exchange_type = exchange_type
        self.routing_key = routing_key
        self.queue_arguments = dict(queue_arguments or {})

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"


class Destination:
    """Where one message goes, with nothing left to resolve."""

    __slots__ = ("declares", "exchange", "exchange_type", "options", "queue", "routing_key")

    def __init__(
        self,
        queue: str,
        exchange: str,
        exchange_type: str,
        routing_key: str,
        options: Mapping[str, Any],
        declares: Queue | None = None,
    ) -> None:
        self.queue = queue
        self.exchange = exchange
        self.exchange_type = exchange_type
        self.routing_key = routing_key
        self.options = options
        """Further options that a route set, e.g. priority."""
        self.declares = declares
        """The queue as it is to be made when there is none of its name."""


def as_queue(value: Any) -> Queue:
    """A `Queue` from ours, from kombu's (recognised by its attributes), or from a name.

    :raises ConfigError: it is none of these.
    """
    if isinstance(value, Queue):
        return value
    if isinstance(value, str):
        return Queue(value)
    name = getattr(value, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"task_queues: {type(value).__name__} is no queue; use kernel_app.Queue(name)")
    exchange = getattr(value, "exchange", None)
    return Queue(
        name,
        exchange=getattr(exchange, "name", exchange) or "",
        exchange_type=getattr(exchange, "type", None) or "direct",
        routing_key=getattr(value, "routing_key", None) or "",
        queue_arguments=_arguments_of(value),
    )


_KOMBU_ARGUMENTS = {
    "expires": ("x-expires", 1000),
    "message_ttl": ("x-message-ttl", 1000),
    "max_length": ("x-max-length", 1),
    "max_length_bytes": ("x-max-length-bytes", 1),
    "max_priority": ("x-max-priority", 1),
}
"""Attributes of kombu's queues that stand for arguments of RabbitMQ, and how much of one makes one of the other."""


def _arguments_of(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "queue_arguments", None) or {})
    for name, (argument, factor) in _KOMBU_ARGUMENTS.items():
        given = getattr(value, name, None)
        if isinstance(given, (int, float)):
            found[argument] = int(given * factor)
    return found


def missing_queue(conf: Settings, name: str) -> Queue:
    """A queue that is in no setting, as the settings want such queues."""
    queue = Queue(
        name,
        exchange_type=conf.task_create_missing_queue_exchange_type or "direct",
        queue_arguments=_QUORUM if conf.task_create_missing_queue_type == "quorum" else None,
    )
    return _with_priority(conf, queue)


_QUORUM = {"x-queue-type": "quorum"}


def _with_priority(conf: Settings, queue: Queue) -> Queue:
    if conf.task_queue_max_priority is not None:
        queue.queue_arguments.setdefault("x-max-priority", conf.task_queue_max_priority)
    return queue


def configured_queues(conf: Settings) -> dict[str, Queue]:
    """The queues of `task_queues` by name: a list of queues, or a dict of name to options or queue."""
    found: dict[str, Queue] = {}
    given = conf.task_queues
    if isinstance(given, Mapping):
        for name, options in given.items():
            if isinstance(options, Mapping):
                known = {"exchange", "exchange_type", "routing_key", "queue_arguments"}
                # Celery's older spelling of the binding
                renamed = {{"binding_key": "routing_key"}.get(key, key): value for key, value in options.items()}
                found[name] = Queue(name, **{key: value for key, value in renamed.items() if key in known})
            else:
                found[name] = as_queue(options)
    else:
        for value in given or ():
            queue = as_queue(value)
            found[queue.name] = queue
    if not found:
        name = conf.task_default_queue
        found[name] = Queue(
            name,
            exchange=conf.task_default_exchange or name,
            exchange_type=conf.task_default_exchange_type,
            routing_key=conf.task_default_routing_key or name,
            queue_arguments=_QUORUM if conf.task_default_queue_type == "quorum" else None,
        )
    return {name: _with_priority(conf, queue) for name, queue in found.items()}


Route = Callable[[str, Any, Any, Mapping[str, Any], Any], Any]
"""(name, args, kwargs, options, task) to a queue's name, options, or None."""


class Router:
    """Resolves destinations for one state of the settings."""

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        self._queues = configured_queues(conf)
        self._default_queue: str = conf.task_default_queue
        given = conf.task_routes
        if given is None:
            given = ()
        elif not isinstance(given, (list, tuple)):
            given = (given,)
        self._routes: list[Route] = [_route(entry) for entry in given]
        self.is_static = not any(callable(entry) or isinstance(entry, str) for entry in given)
        """Whether a task's name alone decides: no function among the routes."""

    def destination(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any) -> Destination:
        """Where a task's message goes. Options of the call win over routes, routes over the default queue.

        :param options: queue, exchange, exchange_type and routing_key are looked at.
        :raises QueueNotFound: no such queue, and `task_create_missing_queues` is off.
        """
        merged: dict[str, Any] = {}
        for route in self._routes:
            found = route(name, args, kwargs, options, task)
            if found is not None:
                merged = {"queue": found} if not isinstance(found, Mapping) else dict(found)
                break
        merged.update((key, value) for key, value in options.items() if value is not None)
        queue = merged.pop("queue", None)
        exchange = merged.pop("exchange", None)
        exchange = getattr(exchange, "name", exchange)
        exchange_type = merged.pop("exchange_type", None)
        routing_key = merged.pop("routing_key", None)
        if queue is None and not (exchange and (routing_key or exchange_type not in (None, "direct"))):
            queue = self._default_queue
        if queue is None:
            return Destination("", exchange, exchange_type or "direct", routing_key or "", merged)
        known = self._queue(queue)
        exchange_type = exchange_type or known.exchange_type
        if exchange_type == "direct" and not (exchange and routing_key):
            return Destination(known.name, "", "direct", known.name, merged, known)
        exchange = exchange or known.exchange or known.name
        routing_key = routing_key or known.routing_key or known.name
        return Destination(known.name, exchange, exchange_type, routing_key, merged, known)

    def _queue(self, queue: Any) -> Queue:
        if not isinstance(queue, str):
            return as_queue(queue)
        known = self._queues.get(queue)
        if known is not None:
            return known
        if not self._conf.task_create_missing_queues:
            raise QueueNotFound(
                f"queue {queue!r} is not in task_queues (has: {', '.join(sorted(self._queues))}), "
                "and task_create_missing_queues is off"
            )
        return missing_queue(self._conf, queue)


def _route(entry: Any) -> Route:
    if isinstance(entry, str):
        return _imported_route(entry)
    if isinstance(entry, (Mapping, list, tuple)):
        return _mapped_route(entry.items() if isinstance(entry, Mapping) else entry)
    if hasattr(entry, "route_for_task"):
        return lambda name, args, kwargs, options, task: entry.route_for_task(name, args, kwargs)
    if callable(entry):
        return lambda name, args, kwargs, options, task: entry(name, args, kwargs, options, task=task)
    raise ConfigError(f"task_routes: {type(entry).__name__} is no route (dict, list of pairs, function or its path)")


def _imported_route(path: str) -> Route:
    import importlib

    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"task_routes: cannot import {path!r}: {error}") from error
    return _route(target() if isinstance(target, type) else target)


def _mapped_route(pairs: Iterable[tuple[Any, Any]]) -> Route:
    exact: dict[str, Any] = {}
    patterns: list[tuple[re.Pattern[str], Any]] = []
    for key, value in pairs:
        if isinstance(key, re.Pattern):
            patterns.append((key, value))
        elif "*" in key:
            import fnmatch

            patterns.append((re.compile(fnmatch.translate(key)), value))
        else:
            exact[key] = value

    def look_up(name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any) -> Any:
        if name in exact:
            return exact[name]
        for pattern, value in patterns:
            if pattern.match(name):
                return value
        return None

    return look_up
