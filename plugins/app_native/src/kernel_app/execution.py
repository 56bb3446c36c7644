"""The compiled call of one task: from a decoded message to an outcome.

Runs in an executor, on the slot that took the job. Hot: everything that does not change from message to message
is looked up once, when the call is compiled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import perf_counter, time
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from kernel_worker.types import Job, Outcome, OutcomeKind

from . import states
from .context import CURRENT, Context
from .decoding import Call, Envelope, read_call, unix_time
from .exceptions import DecodeError, OperationalError, TaskRevokedError
from .following import Followers
from .log import TASK_LOGGER
from .outcomes import Endings, Run, has_hook

if TYPE_CHECKING:
    from .app import App
    from .meta import MetaCodec
    from .task import Task

log = logging.getLogger(TASK_LOGGER)


class NativeJob(Job):
    """A job whose envelope is read."""

    __slots__ = ("call", "envelope", "headers")

    def __init__(self, job: Job, envelope: Envelope, headers: dict[str, Any], call: Call | None) -> None:
        self.tag = job.tag
        self.raw = job.raw
        self.payload = job.payload
        self.queue = job.queue
        self.attempts = job.attempts
        self.redelivered = job.redelivered
        self.hard = job.hard
        self.soft = job.soft
        self.conclude = job.conclude
        self.text = job.text
        self.envelope = envelope
        self.headers = headers
        self.call = call
        """None until the body is read; protocol 1 needs it to know the task's name."""


class Workshop:
    """What all compiled calls of one loaded application share."""

    def __init__(self, app: App, codec: MetaCodec, accept: frozenset[str], node: str) -> None:
        self.app = app
        self.codec = codec
        self.accept = accept
        self.node = node
        self.max_body_bytes: int = app.conf.task_max_body_bytes
        self.followers = Followers(app, codec)
        self.endings = Endings(app, codec, self.followers)

    def read(self, job: NativeJob) -> Call:
        """The call of a job.

        :raises DecodeError: see `read_call`.
        """
        if job.call is None:
            job.call = read_call(job.envelope, self.accept, self.max_body_bytes)
        return job.call

    def context(self, job: NativeJob, task: Any, call: Call) -> Context:
        """The request of a job, as the task sees it."""
        context = Context.__new__(Context)
        args, kwargs, embed = call
        properties = job.envelope.properties
        delivery = properties.get("delivery_info")
        if type(delivery) is not dict:
            delivery = {}
        context.__dict__ = {
            "received": job.headers,
            "_outer": None,
            "_owner": task,
            "args": args,
            "kwargs": kwargs,
            "called_directly": False,
            "hostname": self.node,
            "queue": job.queue,
            "properties": properties,
            "delivery_info": {
                "exchange": delivery.get("exchange", ""),
                "routing_key": delivery.get("routing_key", job.queue),
                "priority": properties.get("priority", 0),
                "redelivered": job.redelivered,
            },
            "callbacks": embed.callbacks,
            "errbacks": embed.errbacks,
            "chain": embed.chain,
            "chord": embed.chord,
        }
        return context

    def started(self, task_id: str) -> None:
        """Store that a task runs. It runs all the same when that cannot be stored."""
        try:
            self.app.store_state(task_id, states.STARTED, {"pid": os.getpid(), "hostname": self.node})
        except OperationalError as away:
            log.warning("that a task has started is not stored: %s", away, extra={"action": "started_unstored"})

    def invalid(self, headers: Any, error: DecodeError, task: Task[..., Any, Any] | None) -> Outcome:
        """The outcome of a message that cannot be run."""
        return Outcome(
            OutcomeKind.INVALID, error=str(error), result=self.endings.state(task, headers, None, states.FAILURE, error)
        )

    def expired(self, job: NativeJob, task: Task[..., Any, Any], context: Context) -> Outcome:
        """The outcome of a message whose time to start has passed."""
        result = self.endings.state(task, job.headers, context, states.REVOKED, TaskRevokedError("expired"))
        return Outcome(OutcomeKind.EXPIRED, error="expired", result=result)


def compile_call(task: Task[..., Any, Any], shop: Workshop) -> Callable[[Any], Outcome]:
    """The function that runs one job of this task."""
    function = task.run
    ignores = task.ignore_result
    stores = shop.app.connections.has_results
    tracks = task.track_started and stores
    before = task.before_start if has_hook(task, "before_start") else None
    notices = has_hook(task, "on_success") or has_hook(task, "after_return")
    succeeded = shop.codec.success
    extended = shop.codec.extended
    endings, followers = shop.endings, shop.followers
    read, make_context = shop.read, shop.context
    run_coroutine = shop.app.coroutines.run
    is_enabled, info = log.isEnabledFor, logging.INFO
    set_current, reset_current, clock = CURRENT.set, CURRENT.reset, perf_counter

    def call(job: NativeJob) -> Outcome:
        headers = job.headers
        try:
            decoded = read(job)
            expires = headers.get("expires")
            is_late = expires is not None and unix_time(expires, "expires") < time()
        except DecodeError as error:
            return shop.invalid(headers, error, task)
        context = make_context(job, task, decoded)
        if is_late:
            return shop.expired(job, task, context)
        args, kwargs, embed = decoded
        ignore = headers.get("ignore_result")
        if ignore is None:
            ignore = ignores
        token = set_current(context)
        started = clock()
        try:
            if tracks and not ignore:
                shop.started(headers["id"])
            if before is not None:
                before(headers["id"], args, kwargs)
            value = function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = run_coroutine(value)
            runtime = clock() - started
            if embed.callbacks or embed.chain or embed.chord:
                followers.succeeded(task, context, embed, value)
            result = None
            if stores and not ignore:
                sent = context.__dict__.get("children")
                children = [child.as_tuple() for child in sent] if sent else None
                more = extended or headers.get("group") or headers.get("parent_id")
                extra = endings.extra(headers, context) if more else None
                result = succeeded(headers["id"], value, children, extra)
            if notices or is_enabled(info):
                endings.succeeded(Run(task, context, embed, runtime), value)
            return Outcome(OutcomeKind.SUCCESS, runtime, result=result)
        except BaseException as error:  # the boundary of a task: whatever it raises is its outcome
            return endings.raised(Run(task, context, embed, clock() - started), error)
        finally:
            reset_current(token)

    return call
