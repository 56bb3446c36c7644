"""The compiled calls of one task: from a decoded message to an outcome, at once or awaited.

Runs in an executor, on the slot that took the job. Hot: everything that does not change from message to message
is looked up once, when the call is compiled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine
from time import perf_counter, time
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from kernel_worker.types import Job, Outcome, OutcomeKind

from . import states
from .context import CURRENT, Context
from .decoding import Call, Envelope, read_call, unix_time
from .exceptions import DecodeError, OperationalError, TaskRevokedError
from .following import Followers
from .log import PRINTED, TASK_LOGGER, flush_output
from .meta import address
from .outcomes import Endings, Run, has_hook
from .signals import task_postrun, task_prerun, task_revoked, task_success

if TYPE_CHECKING:
    from .app import App
    from .meta import MetaCodec
    from .task import Task

log = logging.getLogger(TASK_LOGGER)


class NativeJob(Job):
    """A job whose envelope is read."""

    __slots__ = ("call", "context", "envelope", "headers")

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
        self.context: Context | None = None
        """Of what is read ahead and does not expire."""


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
        self.claim: Callable[[int], None] = lambda tag: None
        """See `LoadedApp.claim`."""

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
            "_embed": embed,
        }
        return context

    def started(self, context: Context) -> None:
        """Store that a task runs. It runs all the same when that cannot be stored."""
        try:
            about = {"pid": os.getpid(), "hostname": self.node}
            self.app.store_state(context.received["id"], states.STARTED, about, context)
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
        if task_revoked.receivers:
            task_revoked.send(task, request=context, terminated=False, signum=None, expired=True)
        return Outcome(OutcomeKind.EXPIRED, error="expired", result=result)


def compile_call(task: Task[..., Any, Any], shop: Workshop) -> Callable[[Any], Outcome]:
    """The function that runs one job of this task."""
    function = task.run
    begin, enter, succeed = _phases(task, shop)
    raised, run_coroutine = shop.endings.raised, shop.app.coroutines.run
    set_current, reset_current, clock = CURRENT.set, CURRENT.reset, perf_counter

    def call(job: NativeJob) -> Outcome:
        context = job.context
        if context is None:
            context = begin(job)
        else:  # nobody else gets it: what the task leaves in it ends with this call
            job.context = job.call = None
        if type(context) is Outcome:
            return context
        token = set_current(context)
        started = clock()
        value: Any = None
        outcome: Outcome
        try:
            try:
                if enter is not None or task_prerun.receivers:
                    _enter(enter, task, context)
                value = function(*context.args, **context.kwargs)
                if type(value) is CoroutineType:
                    value = run_coroutine(value)
                runtime = clock() - started
                outcome = succeed(job, context, value, runtime)
            except BaseException as error:  # the boundary of a task: whatever it raises is its outcome
                value = error
                outcome = raised(Run(task, context, context._embed, clock() - started), error)
            if task_postrun.receivers:
                _leave(task, context, value, outcome)
            if PRINTED in context.__dict__:
                flush_output()
            return outcome
        finally:
            reset_current(token)

    return call


def compile_async_call(
    task: Task[..., Any, Any], shop: Workshop
) -> Callable[[Any], Coroutine[Any, Any, Outcome]] | None:
    """As `compile_call`, to be awaited in an event loop; None when the task is no `async def`.

    What may wait for a server, beside the task itself, is done on a thread.
    """
    function = task.run
    if not _is_coroutine_function(function):
        return None
    from asyncio import to_thread

    begin, enter, succeed = _phases(task, shop)
    clock = perf_counter

    async def call(job: NativeJob) -> Outcome:
        context = begin(job)
        if type(context) is Outcome:
            return context
        CURRENT.set(context)  # of this asyncio task alone
        started = clock()
        value: Any = None
        outcome: Outcome
        try:
            if enter is not None or task_prerun.receivers:
                await to_thread(_enter, enter, task, context)
            value = await function(*context.args, **context.kwargs)
            runtime = clock() - started
            embed = context._embed
            if embed.callbacks or embed.chain or embed.chord:
                outcome = await to_thread(succeed, job, context, value, runtime)
            else:
                outcome = succeed(job, context, value, runtime)
        except BaseException as error:  # as above
            value = error
            outcome = shop.endings.raised(Run(task, context, context._embed, clock() - started), error)
        if task_postrun.receivers:
            _leave(task, context, value, outcome)
        if PRINTED in context.__dict__:
            flush_output()
        return outcome

    return call


def _phases(task: Task[..., Any, Any], shop: Workshop) -> tuple[Any, Any, Any]:
    """`begin(job)` gives a request or the outcome of what shall not be run; `enter(context)`, or None, comes before the
    task; `succeed(job, context, value, runtime)` gives the outcome of one that returned."""
    ignores = task.ignore_result
    stores = shop.app.connections.has_results
    tracks = task.track_started and stores
    before = task.before_start if has_hook(task, "before_start") else None
    notices = has_hook(task, "on_success") or has_hook(task, "after_return")
    succeeded = shop.codec.success
    extended = shop.codec.extended
    endings, followers = shop.endings, shop.followers
    read, make_context = shop.read, shop.context
    is_enabled, info = log.isEnabledFor, logging.INFO

    def begin(job: NativeJob) -> Context | Outcome:
        try:
            decoded = read(job)
            expires = job.headers.get("expires")
            is_late = expires is not None and unix_time(expires, "expires") < time()
        except DecodeError as error:
            return shop.invalid(job.headers, error, task)
        context = make_context(job, task, decoded)
        return shop.expired(job, task, context) if is_late else context

    def is_ignored(headers: Any) -> Any:
        ignore = headers.get("ignore_result")
        return ignores if ignore is None else ignore

    def enter(context: Context) -> None:
        if tracks and not is_ignored(context.received):
            shop.started(context)
        if before is not None:
            before(context.received["id"], context.args, context.kwargs)

    def succeed(job: NativeJob, context: Context, value: Any, runtime: float) -> Outcome:
        headers = job.headers
        embed = context._embed
        if embed.callbacks or embed.chain or embed.chord:
            shop.claim(job.tag)
            followers.succeeded(task, context, embed, value)
        result = None
        if stores and not is_ignored(headers):
            sent = context.__dict__.get("children")
            children = [child.as_tuple() for child in sent] if sent else None
            more = extended or headers.get("group") or headers.get("parent_id")
            extra = endings.extra(headers, context) if more else None
            result = address(succeeded(headers["id"], value, children, extra), context.properties)
        outcome = Outcome(OutcomeKind.SUCCESS, runtime, result=result)
        if notices or endings.verbose or task_success.receivers or is_enabled(info):
            endings.succeeded(Run(task, context, embed, runtime), value, outcome)
        return outcome

    return begin, enter if tracks or before is not None else None, succeed


def _enter(enter: Callable[[Context], None] | None, task: Task[..., Any, Any], context: Context) -> None:
    task_prerun.send(task, task_id=context.id, task=task, args=context.args, kwargs=context.kwargs)
    if enter is not None:
        enter(context)


_STATES = {
    OutcomeKind.SUCCESS: states.SUCCESS,
    OutcomeKind.RETRY: states.RETRY,
    OutcomeKind.IGNORE: states.IGNORED,
    OutcomeKind.REJECT: states.REJECTED,
    OutcomeKind.REVOKED: states.REVOKED,
}


def _leave(task: Task[..., Any, Any], context: Context, value: Any, outcome: Outcome) -> None:
    task_postrun.send(
        task,
        task_id=context.id,
        task=task,
        args=context.args,
        kwargs=context.kwargs,
        retval=value,
        state=_STATES.get(outcome.kind, states.FAILURE),
    )


def _is_coroutine_function(function: Any) -> bool:
    function = getattr(function, "func", function)  # bind=True: a partial
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


_CO_COROUTINE = 0x80  # inspect's, which no executor needs otherwise
