"""Build task messages: headers, properties and body (wire-protocol §2 to §5 and §9).

Hot: `Sender.message` runs once per message sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from .compression import compress, mime_type
from .context import running
from .message import Message, new_id
from .representation import bounded_repr
from .routing import Destination, Router
from .serialization import dumps, to_json
from .settings import Settings
from .signals import before_task_publish
from .transport import Identity

if TYPE_CHECKING:
    from .task import Task


class PublishOptions(TypedDict, total=False):
    """Options of `Task.apply_async` and `App.send_task`, with Celery's names and meanings."""

    task_id: str | None
    countdown: float | None
    """Seconds from now before which it shall not start."""
    eta: datetime | str | None
    """Time before which it shall not start; a naive one is UTC."""
    expires: float | datetime | str | None
    """Seconds from now, or a time, after which it is not started any more."""
    queue: Any
    exchange: Any
    exchange_type: str | None
    routing_key: str | None
    priority: int | None
    serializer: str | None
    compression: str | None
    delivery_mode: int | None
    link: Any
    """Signature or signatures to run with the result when it succeeds."""
    link_error: Any
    """Signature or signatures to run when it fails."""
    chain: Any
    chord: Any
    shadow: str | None
    headers: Mapping[str, Any] | None
    ignore_result: bool | None
    time_limit: float | None
    soft_time_limit: float | None
    retry: bool | None
    """Try again when the broker is away (`task_publish_retry`)."""
    retry_policy: Mapping[str, Any] | None
    reply_to: str | None
    group_id: str | None
    group_index: int | None
    root_id: str | None
    parent_id: str | None
    retries: int
    replaced_task_nesting: int
    argsrepr: str | None
    kwargsrepr: str | None
    stamped_headers: Sequence[str] | None
    origin: str | None
    add_to_parent: bool


OPTIONS = frozenset(PublishOptions.__annotations__)
_DESTINATION = ("queue", "exchange", "exchange_type", "routing_key")
TASK_DEFAULTS = (
    *("queue", "routing_key", "exchange", "priority", "expires"),
    *("serializer", "delivery_mode", "compression", "time_limit", "soft_time_limit"),
)
"""Attributes of a task that are defaults of its messages."""

_NO_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Plan:
    """What is the same for all messages of one task, as long as the settings stay."""

    __slots__ = ("defaults", "destination", "ignore_result")

    def __init__(self, defaults: dict[str, Any], ignore_result: bool | None, destination: Destination | None) -> None:
        self.defaults = defaults
        self.ignore_result = ignore_result
        self.destination = destination
        """None when it depends on the call."""


class Sender:
    """Builds the messages of one application. Any thread."""

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        self._version = -1
        self._plans: dict[str, Plan] = {}
        self._router: Router
        self._identity: Identity | None = None

    def forget_plans(self) -> None:
        """Compute again what was computed per task; to be called when a task's attributes change."""
        self._version = -1

    def _refresh(self) -> None:
        conf = self._conf
        version = conf.version
        self._router = Router(conf)
        self._plans = {}
        self._serializer: str = conf.task_serializer
        self._compression: str | None = conf.task_compression
        self._delivery_mode: int = conf.task_default_delivery_mode
        self._inherit_priority: bool = conf.task_inherit_parent_priority
        self._protocol_1 = conf.task_protocol == 1
        self._depth: int = conf.task_repr_maxlevels
        self._version = version

    def _plan(self, name: str, task: Task[..., Any, Any] | None) -> Plan:
        defaults: dict[str, Any] = {}
        if task is not None:
            values = ((option, getattr(task, option, None)) for option in TASK_DEFAULTS)
            defaults = {option: value for option, value in values if value is not None}
        elif self._conf.task_default_priority is not None:
            defaults["priority"] = self._conf.task_default_priority
        destination = None
        if self._router.is_static:
            destination = self._router.destination(name, (), {}, _destination_options(defaults), task)
            if destination.options:
                defaults = {**destination.options, **defaults}
        plan = Plan(defaults, None if task is None else task.ignore_result, destination)
        self._plans[name] = plan
        return plan

    def message(
        self,
        name: str,
        task: Task[..., Any, Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Message:
        """One message, ready to be published.

        :param task: the task if it is registered here: its options are defaults.
        :raises TypeError: an option of unknown name, or arguments of a wrong kind.
        :raises EncodeError: the arguments cannot be written in the serializer.
        """
        if self._version != self._conf.version:
            self._refresh()
        plan = self._plans.get(name) or self._plan(name, task)
        destination = plan.destination
        if options:
            if not options.keys() <= OPTIONS:
                _check_names(options)
            chosen = _destination_options(options)
            if chosen or destination is None:
                destination = self._router.destination(
                    name, args, kwargs, {**_destination_options(plan.defaults), **chosen}, task
                )
        elif destination is None:
            destination = self._router.destination(name, args, kwargs, _destination_options(plan.defaults), task)
        assert destination is not None
        if options or plan.defaults or destination.options:
            options = {**destination.options, **plan.defaults, **options}
        return self._build(name, args, kwargs, options, destination, plan.ignore_result)

    def _build(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        destination: Destination,
        ignore_result: bool | None,
    ) -> Message:
        if not isinstance(args, (tuple, list)):
            raise TypeError(f"args must be a list or tuple, not {type(args).__name__}")
        if not isinstance(kwargs, Mapping):
            raise TypeError(f"kwargs must be a mapping, not {type(kwargs).__name__}")
        get = options.get
        identity = self._identity
        if identity is None or identity.pid != os.getpid():
            identity = self._identity = Identity()
        task_id = get("task_id") or new_id()
        properties: dict[str, Any] = {
            "correlation_id": task_id,
            "reply_to": get("reply_to") or identity.reply_to,
            "delivery_mode": get("delivery_mode") or self._delivery_mode,
        }
        root_id, parent_id, priority = get("root_id"), get("parent_id"), get("priority")
        if not (root_id and parent_id):
            parent = running()
            if parent is not None:
                root_id = root_id or parent.root_id or parent.id
                parent_id = parent_id or parent.id
                if priority is None and self._inherit_priority:
                    priority = (parent.delivery_info or {}).get("priority")
        eta = expires = moment = None
        if options:
            eta, moment, expires = _times(options, properties, task_id)
        headers: dict[str, Any] = {
            "lang": "py",
            "task": name,
            "id": task_id,
            "shadow": get("shadow"),
            "eta": eta,
            "expires": expires,
            "group": get("group_id"),
            "group_index": get("group_index"),
            "retries": get("retries", 0),
            "timelimit": [get("time_limit"), get("soft_time_limit")],
            "root_id": root_id or task_id,
            "parent_id": parent_id,
            "argsrepr": get("argsrepr") or bounded_repr(args, depth=self._depth),
            "kwargsrepr": get("kwargsrepr") or bounded_repr(kwargs, depth=self._depth),
            "origin": get("origin") or identity.origin,
            "ignore_result": get("ignore_result", ignore_result),
            "replaced_task_nesting": get("replaced_task_nesting", 0),
            "stamped_headers": get("stamped_headers"),
            "stamps": {key: options[key] for key in get("stamped_headers") or ()},
        }
        body: Any = (args, kwargs, _embed(options) if options else _NO_EMBED)
        if options.get("headers"):
            _add_custom(headers, options["headers"])
        if before_task_publish.receivers:  # what they change in headers and properties is sent
            before_task_publish.send(
                name,
                body=body,
                exchange=destination.exchange,
                routing_key=destination.routing_key,
                headers=headers,
                properties=properties,
                declare=[],
                retry_policy=get("retry_policy"),
            )
        if self._protocol_1:
            body, headers = _protocol_1(headers, body), {}
        serializer = get("serializer") or self._serializer
        if serializer == "json":
            content_type, encoding, data = "application/json", "utf-8", to_json(body).encode("ascii")
        else:
            content_type, encoding, data = dumps(body, serializer)
        compression = get("compression") or self._compression
        if compression:
            headers["compression"] = mime_type(compression)
            data = compress(data, headers["compression"])
        return Message(
            destination.queue,
            data,
            headers=headers,
            properties=properties,
            exchange=destination.exchange,
            exchange_type=destination.exchange_type,
            routing_key=destination.routing_key,
            priority=priority,
            eta=moment,
            content_type=content_type,
            content_encoding=encoding,
            declares=destination.declares,
        )


def _destination_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in _DESTINATION if options.get(key) is not None}


def _check_names(options: Mapping[str, Any]) -> None:
    stamps = options.get("stamped_headers") or ()
    for name in options:
        if name not in OPTIONS and name not in stamps:
            import difflib

            near = difflib.get_close_matches(name, OPTIONS, n=1)
            raise TypeError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _embed(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "callbacks": _as_list(options.get("link")),
        "errbacks": _as_list(options.get("link_error")),
        "chain": options.get("chain"),
        "chord": options.get("chord"),
    }


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def _add_custom(headers: dict[str, Any], custom: Mapping[str, Any]) -> None:
    for name in ("id", "task"):
        if name in custom:
            raise ValueError(f"headers cannot hold {name!r}: it names the message; use task_id or another task")
    headers.update(custom)


def _protocol_1(headers: Mapping[str, Any], body: Any) -> dict[str, Any]:
    args, kwargs, embed = body
    fields = {name: headers[name] for name in ("task", "id", "group", "group_index", "retries", "eta", "expires")}
    links = {name: embed[name] for name in ("callbacks", "errbacks", "chord")}
    rest = {"utc": True, "timelimit": headers["timelimit"], "taskset": headers["group"]}
    return {**fields, "args": args, "kwargs": kwargs, **links, **rest}


# --------------------------------------------------------------------------- times


def as_utc(moment: datetime) -> datetime:
    """An aware datetime; a naive one is taken as UTC, as readers of the protocol do (wire-protocol §7)."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _times(
    options: Mapping[str, Any], properties: dict[str, Any], task_id: str
) -> tuple[str | None, float | None, str | None]:
    """The eta header, its unix time, and the expires header; sets the property `expiration`."""
    soft, hard = options.get("soft_time_limit"), options.get("time_limit")
    if soft and hard and soft > hard:
        raise ValueError(f"soft_time_limit ({soft}) must not be larger than time_limit ({hard})")
    countdown, eta, expires = options.get("countdown"), options.get("eta"), options.get("expires")
    moment: datetime | None = None
    if countdown:
        moment = datetime.now(UTC) + timedelta(seconds=countdown)
        eta = moment.isoformat()
    elif eta:
        moment = as_utc(datetime.fromisoformat(eta) if isinstance(eta, str) else eta)
        eta = eta if isinstance(eta, str) else eta.isoformat()
    else:
        eta = None
    if expires is not None:
        expires = _expiry(expires, properties, task_id)
    return eta, moment.timestamp() if moment is not None else None, expires


def _expiry(expires: Any, properties: dict[str, Any], task_id: str) -> str:
    now = datetime.now(UTC)
    if isinstance(expires, (datetime, str)):
        moment = as_utc(datetime.fromisoformat(expires) if isinstance(expires, str) else expires)
        left = (moment - now).total_seconds()
        text = expires if isinstance(expires, str) else expires.isoformat()
    else:
        left = float(expires)
        text = (now + timedelta(seconds=left)).isoformat()
    if left < 0:
        import logging

        logging.getLogger("kernel_app").warning(
            "task %s is sent although it expired %.1f s ago",
            task_id,
            -left,
            extra={"action": "sent_expired", "task_id": task_id},
        )
        left = 0.0
    properties["expiration"] = str(int(left * 1000))
    return text
