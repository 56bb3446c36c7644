"""Remote control of workers, `kw`'s and Celery's: `app.control`, with Celery's names and the shapes of its replies.

Imported when first used. Each call opens a connection of its own and closes it, so no reply queue outlives a call.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .exceptions import ConfigError, OperationalError
from .message import new_id
from .transport import MAILBOXES, REVOKES, reason_of, urls_of

if TYPE_CHECKING:
    from .app import App

REVOKE_S = 10_800.0
"""How long a revoke holds, as with workers."""

Reply = dict[str, Any]
"""`{node name: its reply}`: one key."""


class DuplicateNodenameWarning(UserWarning):
    """Two workers answered under one name."""


@dataclass
class Answers:
    """What came back.

    :ivar replies: in the order they came.
    :ivar heard: how many workers got the command, where the broker says so.
    :ivar silent: names of those that should have answered and did not.
    """

    replies: list[Reply] = field(default_factory=list)
    heard: int | None = None
    silent: list[str] = field(default_factory=list)


class Control:
    """Commands to running workers; one per application, as `app.control`. Any thread.

    Every method takes `destination` (list of node names), `pattern` and `matcher` ("glob" or "pcre"), `reply=True` to wait
    for replies, `timeout` (seconds to wait for each further reply, default 1) and `limit` (replies to wait for). With
    `reply` it returns a list of `{node: reply}`, else None.

    :raises OperationalError: the broker cannot be reached.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def inspect(
        self,
        destination: str | Sequence[str] | None = None,
        timeout: float = 1.0,
        callback: Callable[[Reply], object] | None = None,
        connection: object = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Inspect:
        """Questions to workers, which change nothing."""
        return Inspect(self, destination, timeout, callback, limit, pattern, matcher)

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        connection: object = None,
        reply: bool = False,
        timeout: float = 1.0,
        limit: int | None = None,
        callback: Callable[[Reply], object] | None = None,
        channel: object = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra_arguments: Any,
    ) -> list[Reply] | None:
        """Send any command, one of a plugin or of a Celery worker too.

        :param connection: taken for the sake of Celery's callers, and not used; `channel` the same.
        :param callback: called with each reply when it comes.
        :raises ValueError: `destination` is one text, or the arguments are no JSON.
        """
        given = {**(arguments or {}), **extra_arguments}
        answers = self.ask(
            command,
            given,
            destination,
            wants_reply=reply,
            timeout=timeout,
            limit=limit,
            callback=callback,
            pattern=pattern,
            matcher=matcher,
        )
        return answers.replies if reply else None

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any],
        destination: Sequence[str] | None = None,
        *,
        wants_reply: bool = True,
        timeout: float = 1.0,
        limit: int | None = None,
        callback: Callable[[Reply], object] | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
        is_brief: bool = False,
    ) -> Answers:
        """As `broadcast`, and says who was silent.

        :param is_brief: stop as soon as everybody who heard the command has answered, and compare with who holds a lease,
            where the broker tells.
        """
        if destination is not None and not isinstance(destination, (list, tuple)):
            raise ValueError(f"destination must be a list of node names, not {type(destination).__name__}")
        box, ticket = new_id(), new_id()
        message: dict[str, Any] = {
            "method": command,
            "arguments": dict(arguments),
            "destination": list(destination) if destination else None,
            "pattern": pattern,
            "matcher": matcher,
        }
        if wants_reply:
            name = self._app.conf.control_exchange
            message |= {"ticket": ticket, "reply_to": {"exchange": f"reply.{name}.pidbox", "routing_key": box}}
        try:
            body = json.dumps(message).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the arguments of {command} cannot be sent as JSON: {error}") from None
        headers = {"clock": 0, "expires": time.time() + timeout if timeout else 0}
        if command == "revoke" and not destination and not pattern:
            self._keep_revoked(arguments.get("task_id"))
        with self._mailbox() as mailbox:
            if not wants_reply:
                return Answers(heard=mailbox.broadcast(headers, body))
            mailbox.expect(box)
            heard = mailbox.broadcast(headers, body)
            everybody = not destination and not pattern
            if limit is None:
                limit = len(destination) if destination else heard if is_brief and everybody else None
            replies = list(_collect(mailbox, ticket, timeout, limit, callback))
            answers = Answers(replies, heard if everybody else None)
            expected = destination or (mailbox.roster() if everybody and is_brief else ())
        answered = {node for each in replies for node in each}
        answers.silent = sorted(set(expected) - answered)
        return answers

    @contextmanager
    def _mailbox(self) -> Iterator[Any]:
        """A mailbox on the first broker that can be reached."""
        conf = self._app.conf
        urls = urls_of(conf.broker_write_url or conf.broker_url)
        for position, url in enumerate(urls):
            driver = self._app.connections.drivers.find(MAILBOXES, url)
            mailbox = driver(url, dict(conf.broker_transport_options), conf.control_exchange)
            try:
                yield mailbox
                return
            except ConnectionError as error:
                if position + 1 == len(urls):
                    raise OperationalError(reason_of("broker", url, error)) from error
            finally:
                mailbox.close()

    # ------------------------------------------------------------------ commands

    def ping(self, destination: Sequence[str] | None = None, timeout: float = 1.0, **options: Any) -> list[Reply]:
        """Who is there: `[{node: {"ok": "pong"}}, …]`."""
        found = self.broadcast("ping", destination=destination, timeout=timeout, reply=True, **options)
        return found or []

    def revoke(
        self,
        task_id: str | Sequence[str],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        **options: Any,
    ) -> list[Reply] | None:
        """Have tasks not run; with `terminate`, end those that run. On Redis, SQLite and RabbitMQ it also holds for workers
        that start later, unless only some workers were asked."""
        given = {"task_id": _ids(task_id), "terminate": terminate, "signal": signal}
        return self.broadcast("revoke", given, destination, **options)

    def _keep_revoked(self, task_id: object) -> None:
        """Have the broker keep revokes, where it can. A worker that hears them does so,
        too, but on RabbitMQ; so elsewhere this matters only while there is none."""
        conf = self._app.conf
        ids = [task_id] if isinstance(task_id, str) else task_id
        if not isinstance(ids, (list, tuple)) or not all(isinstance(each, str) for each in ids):
            return  # workers say what is wrong with it
        for url in urls_of(conf.broker_write_url or conf.broker_url):
            try:
                store = self._app.connections.drivers.find(REVOKES, url)(url, dict(conf.broker_transport_options))
            except ConfigError:
                continue
            try:
                seconds = float(os.environ.get("CELERY_WORKER_REVOKE_EXPIRES") or REVOKE_S)
                store.add(ids, time.time() + seconds)
                return
            except ConnectionError:  # the broadcast says so, or reaches the workers by another URL
                continue
            finally:
                store.close()

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        **options: Any,
    ) -> list[Reply] | None:
        """The same for all tasks with these stamps."""
        given = {"headers": dict(headers), "terminate": terminate, "signal": signal}
        return self.broadcast("revoke_by_stamped_headers", given, destination, **options)

    def terminate(
        self,
        task_id: str | Sequence[str],
        destination: Sequence[str] | None = None,
        signal: str | int = "SIGTERM",
        **options: Any,
    ) -> list[Reply] | None:
        """End running tasks; they become REVOKED."""
        return self.revoke(task_id, destination, terminate=True, signal=signal, **options)

    def rate_limit(
        self, task_name: str, rate_limit: str | int, destination: Sequence[str] | None = None, **options: Any
    ) -> list[Reply] | None:
        """Limit how often a task runs in each worker: "10/s", "200/m", "5/h"; 0 for no limit."""
        given = {"task_name": task_name, "rate_limit": rate_limit}
        return self.broadcast("rate_limit", given, destination, **options)

    def time_limit(
        self,
        task_name: str,
        soft: float | None = None,
        hard: float | None = None,
        destination: Sequence[str] | None = None,
        **options: Any,
    ) -> list[Reply] | None:
        """Set a task's time limits in seconds; a missing one is taken away."""
        given = {"task_name": task_name, "hard": hard, "soft": soft}
        return self.broadcast("time_limit", given, destination, **options)

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[Reply] | None:
        """Consume from one more queue. `options` are further arguments of the command."""
        given = {
            "queue": queue,
            "exchange": exchange,
            "exchange_type": exchange_type,
            "routing_key": routing_key,
            **(options or {}),
        }
        return self.broadcast("add_consumer", given, destination, **kwargs)

    def cancel_consumer(
        self, queue: str, destination: Sequence[str] | None = None, **options: Any
    ) -> list[Reply] | None:
        """Take nothing more from a queue."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **options)

    def pause(self, queue: str, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Take nothing from a queue until `resume`. `kw` workers only."""
        return self.broadcast("pause", {"queue": queue}, destination, **options)

    def resume(
        self, queue: str | None = None, destination: Sequence[str] | None = None, **options: Any
    ) -> list[Reply] | None:
        """Undo `pause` and `drain`. `kw` workers only."""
        return self.broadcast("resume", {"queue": queue} if queue else {}, destination, **options)

    def drain(self, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Finish what was received and take nothing more. `kw` workers only."""
        return self.broadcast("drain", {}, destination, **options)

    def enable_events(self, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Send events of tasks."""
        return self.broadcast("enable_events", {}, destination, **options)

    def disable_events(self, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Send no events of tasks."""
        return self.broadcast("disable_events", {}, destination, **options)

    def heartbeat(self, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Send a heartbeat event now."""
        return self.broadcast("heartbeat", {}, destination, **options)

    def pool_grow(self, n: int = 1, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Run `n` more tasks at once."""
        return self.broadcast("pool_grow", {"n": n}, destination, **options)

    def pool_shrink(self, n: int = 1, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Run `n` tasks less at once."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **options)

    def pool_restart(
        self,
        modules: Sequence[str] | None = None,
        reload: bool = False,
        reloader: object = None,
        destination: Sequence[str] | None = None,
        **options: Any,
    ) -> list[Reply] | None:
        """Replace the executors. `kw` workers import what they are configured to, and take no `modules`."""
        given = {"modules": modules, "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", given, destination, **options)

    def autoscale(
        self, max: int, min: int, destination: Sequence[str] | None = None, **options: Any
    ) -> list[Reply] | None:
        """Change the bounds of the autoscaler."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **options)

    def shutdown(self, destination: Sequence[str] | None = None, **options: Any) -> list[Reply] | None:
        """Stop workers as a SIGTERM does. Nobody answers to this."""
        return self.broadcast("shutdown", {}, destination, **options)

    def election(self, id: str, topic: str, action: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Have one of the Celery workers do something; `kw` workers leave it to them."""
        self.broadcast("election", {"id": id, "topic": topic, "action": action}, **options)


class Inspect:
    """Questions to workers; each method gives `{node: reply}`, or None when nobody answered."""

    def __init__(
        self,
        control: Control,
        destination: str | Sequence[str] | None = None,
        timeout: float = 1.0,
        callback: Callable[[Reply], object] | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        self._control = control
        self.destination = [destination] if isinstance(destination, str) else destination
        self.timeout = timeout
        self._options: dict[str, Any] = {
            "callback": callback,
            "limit": limit,
            "pattern": pattern,
            "matcher": matcher,
        }

    def request(self, command: str, **arguments: Any) -> Reply | None:
        """Any command that takes no more than to be asked."""
        replies = self._control.broadcast(
            command, arguments, self.destination, reply=True, timeout=self.timeout, **self._options
        )
        return merged(replies or []) or None

    def active(self, safe: bool | None = None) -> Reply | None:
        """Tasks that run now."""
        return self.request("active", **({} if safe is None else {"safe": safe}))

    def active_queues(self) -> Reply | None:
        """Queues consumed from."""
        return self.request("active_queues")

    def clock(self) -> Reply | None:
        """Logical clocks."""
        return self.request("clock")

    def conf(self, with_defaults: bool = False) -> Reply | None:
        """Settings, secrets masked."""
        return self.request("conf", with_defaults=with_defaults)

    def hello(self, from_node: str, revoked: Any = None) -> Reply | None:
        """What a worker asks the others when it starts."""
        return self.request("hello", from_node=from_node, revoked=revoked)

    def memdump(self, samples: int = 10) -> Reply | None:
        """Memory, in words."""
        return self.request("memdump", samples=samples)

    def memsample(self) -> Reply | None:
        """Memory in use."""
        return self.request("memsample")

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Reply | None:
        """Celery workers only."""
        return self.request("objgraph", num=n, max_depth=max_depth, type=type)

    def ping(self, destination: Sequence[str] | None = None) -> Reply | None:
        """Who is there."""
        if destination:
            self.destination = list(destination)
        return self.request("ping")

    def query_task(self, *ids: str | Sequence[str]) -> Reply | None:
        """Where tasks are."""
        flat = [id for each in ids for id in ([each] if isinstance(each, str) else each)]
        return self.request("query_task", ids=flat)

    def registered(self, *taskinfoitems: str) -> Reply | None:
        """Names of tasks, with attributes."""
        return self.request("registered", taskinfoitems=list(taskinfoitems))

    registered_tasks = registered

    def report(self) -> Reply | None:
        """Versions and settings."""
        return self.request("report")

    def reserved(self) -> Reply | None:
        """Tasks received that do not run yet."""
        return self.request("reserved")

    def revoked(self) -> Reply | None:
        """Ids of revoked tasks."""
        return self.request("revoked")

    def scheduled(self) -> Reply | None:
        """Tasks held until their time."""
        return self.request("scheduled")

    def stats(self) -> Reply | None:
        """Counters."""
        return self.request("stats")


def merged(replies: Sequence[Reply]) -> Reply:
    """One object of all replies; two nodes of one name are warned of."""
    found: Reply = {}
    for reply in replies:
        for node, value in reply.items():
            if node in found:
                warnings.warn(
                    f"two workers are named {node!r}: start them with different names (-n)",
                    DuplicateNodenameWarning,
                    stacklevel=4,
                )
            found[node] = value
    return found


def _ids(task_id: str | Sequence[str]) -> Any:
    return task_id if isinstance(task_id, str) else [str(each) for each in task_id]


def _collect(
    mailbox: Any, ticket: str, timeout: float, limit: int | None, callback: Callable[[Reply], object] | None
) -> Iterator[Reply]:
    """Replies until nobody has answered for `timeout` seconds, or enough have."""
    count = 0
    deadline = time.monotonic() + timeout
    while limit is None or count < limit:
        letters = mailbox.receive(max(0.0, deadline - time.monotonic()))
        for headers, content_type, body in letters:
            if content_type != "application/json" or headers.get("ticket", ticket) != ticket:
                continue
            try:
                reply = json.loads(body)
            except (ValueError, RecursionError):
                continue
            if not isinstance(reply, dict):
                continue
            count += 1
            deadline = time.monotonic() + timeout
            if callback is not None:
                callback(reply)
            yield reply
        if not letters and time.monotonic() >= deadline:
            return
