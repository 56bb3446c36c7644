"""How a run ended: the state to store, followers, hooks, and one line in the log.

Runs in an executor, on the slot of the task, while its request is current. Texts of the log lines as Celery's users
know them (worker-cli §4).
"""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Mapping
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from kernel_worker.types import Outcome, OutcomeKind, StoredResult

from . import states
from .context import Context
from .exceptions import Ignore, Reject, Retry, TaskPredicate, TaskRevokedError, Terminated, TimeLimitExceeded
from .following import Followers
from .log import PRINTED, TASK_LOGGER, flush_output
from .meta import MetaCodec, address, writable
from .representation import bounded_repr, describe_error, printable, safe_str
from .retrying import automatic
from .signals import task_failure, task_rejected, task_retry, task_revoked, task_success
from .task import Task

if TYPE_CHECKING:
    from .app import App
    from .decoding import Embed

log = logging.getLogger(TASK_LOGGER)

TRACEBACK_CHARS = 64 * 1024
"""Longest stored traceback: what lies between its beginning and its end is left out."""
LOGGED_LINES = 200
SHOWN_CHARS = 1024
"""Longest text of `Outcome.shown`."""


class ExceptionInfo:
    """What hooks get as `einfo`."""

    __slots__ = ("exception", "traceback", "type")

    def __init__(self, error: BaseException, text: str) -> None:
        self.exception = error
        self.traceback = text
        self.type = type(error)

    def __str__(self) -> str:
        return self.traceback


class Run:
    """One run that did not simply return."""

    __slots__ = ("context", "embed", "headers", "runtime", "task")

    def __init__(self, task: Task[..., Any, Any], context: Context, embed: Embed, runtime: float) -> None:
        self.task = task
        self.context = context
        self.headers: Mapping[str, Any] = context.received
        self.embed = embed
        self.runtime = runtime


class Endings:
    """Ends runs. One per loaded application; holds no state of a run."""

    def __init__(self, app: App, codec: MetaCodec, followers: Followers) -> None:
        self._app = app
        self._codec = codec
        self._followers = followers
        self.verbose = False
        """Whether outcomes shall carry `shown` and `traceback`: somebody listens to the worker's events."""

    # -- states

    def extra(self, headers: Mapping[str, Any], context: Context | None) -> dict[str, Any]:
        """Fields of a stored state beyond those that every state has."""
        extra: dict[str, Any] = {}
        if headers.get("group"):
            extra["group_id"] = headers["group"]
        if headers.get("parent_id"):
            extra["parent_id"] = headers["parent_id"]
        if self._codec.extended and context is not None:
            extra.update(
                name=headers.get("task"),
                args=writable(context.args),
                kwargs=writable(context.kwargs),
                worker=context.hostname,
                retries=headers.get("retries", 0),
                queue=(context.delivery_info or {}).get("routing_key"),
            )
            stamps, names = headers.get("stamps"), headers.get("stamped_headers")
            if isinstance(stamps, dict) and isinstance(names, list) and stamps:
                extra["stamped_headers"] = names
                extra.update({name: stamps[name] for name in names if isinstance(name, str) and name in stamps})
        return extra

    def state(
        self,
        task: Task[..., Any, Any] | None,
        headers: Mapping[str, Any],
        context: Context | None,
        state: str,
        value: Any,
        traceback: str | None = None,
    ) -> StoredResult | None:
        """The state to store, or None when there is no backend or results are ignored."""
        if not self._app.connections.has_results:
            return None
        ignore = headers.get("ignore_result")
        if ignore is None and task is not None:
            ignore = task.ignore_result
        if ignore:
            errors = task is not None and task.store_errors_even_if_ignored
            if not (errors and state in states.PROPAGATE_STATES):
                return None
        children = [child.as_tuple() for child in context.children] if context is not None else None
        made: StoredResult = self._codec.other(
            headers["id"], state, value, traceback=traceback, children=children, extra=self.extra(headers, context)
        )
        return made if context is None else address(made, context.properties or {})

    # -- ends

    def raised(self, run: Run, error: BaseException) -> Outcome:
        """The outcome of a run that raised `error`."""
        if isinstance(error, Terminated):
            return self._terminated(run, error)
        if not isinstance(error, TaskPredicate) or (isinstance(error, Retry) and error.sig is None):
            error = self._try_again(run.task, error) or error
        try:
            if isinstance(error, Retry):
                return self._retried(run, error)
            if isinstance(error, Reject):
                return self._rejected(run, error)
            if isinstance(error, Ignore):
                _log(logging.INFO, "Task %s[%s] ignored", run)
                return Outcome(OutcomeKind.IGNORE, run.runtime)
            if isinstance(error, MemoryError):
                return _out_of_memory(run)
            return self._failed(run, error)
        finally:
            error.__traceback__ = None  # its frames hold the task's variables

    def _try_again(self, task: Task[..., Any, Any], error: BaseException) -> BaseException | None:
        """The retry that was asked for, or the error that takes its place; None when none was."""
        try:
            if isinstance(error, Retry):  # raised without `Task.retry`, so nothing has been sent yet
                when = error.when
                times = {"countdown": when} if isinstance(when, (int, float)) else {"eta": when}
                return task.retry(exc=error.exc, throw=False, **times)
            if task.autoretry_for:
                return automatic(task, error)
        except BaseException as final:  # no try left, or the broker is away: this is how it ends
            return final
        return None

    def _failed(self, run: Run, error: BaseException) -> Outcome:
        kind = OutcomeKind.TIMEOUT if isinstance(error, TimeLimitExceeded) else OutcomeKind.FAILURE
        context, headers = run.context, run.headers
        text = _traceback_text(error)
        result = self.state(run.task, headers, context, states.FAILURE, error, text)
        self._followers.failed(headers, context, run.embed, error, text)
        info = ExceptionInfo(error, text)
        call_hook(run.task, "on_failure", error, context.id, context.args, context.kwargs, info)
        call_hook(run.task, "after_return", states.FAILURE, error, context.id, context.args, context.kwargs, info)
        if task_failure.receivers:
            task_failure.send(
                run.task,
                task_id=context.id,
                exception=error,
                args=context.args,
                kwargs=context.kwargs,
                traceback=error.__traceback__,
                einfo=info,
            )
        if isinstance(error, run.task.throws):
            _log(logging.INFO, "Task %s[%s] raised expected: %s", run, describe_error(error))
        elif log.isEnabledFor(logging.ERROR):
            lines = [printable(line, 2000) for line in text.splitlines()[-LOGGED_LINES:]]
            _log(logging.ERROR, "Task %s[%s] raised unexpected: %s\n%s", run, describe_error(error), "\n".join(lines))
        return self._shown(Outcome(kind, run.runtime, describe_error(error), result=result), error, text)

    def _shown(self, outcome: Outcome, error: BaseException, text: str) -> Outcome:
        if self.verbose:
            outcome.shown = printable(bounded_repr(error, SHOWN_CHARS), SHOWN_CHARS)
            outcome.traceback = text
        return outcome

    def _terminated(self, run: Run, error: Terminated) -> Outcome:
        """A person ended it: that is neither a failure of the task nor a reason to try again."""
        reason = printable(safe_str(error)) or "terminated"
        revoked = TaskRevokedError(reason)
        result = self.state(run.task, run.headers, run.context, states.REVOKED, revoked)
        _log(logging.INFO, "Task %s[%s] %s", run, reason)
        if task_revoked.receivers:
            task_revoked.send(run.task, request=run.context, terminated=True, signum=None, expired=False)
        return self._shown(Outcome(OutcomeKind.REVOKED, run.runtime, reason, result=result), revoked, "")

    def _retried(self, run: Run, error: Retry) -> Outcome:
        context = run.context
        text = _traceback_text(error)
        result = self.state(run.task, run.headers, context, states.RETRY, error.exc, text)
        info = ExceptionInfo(error, text)
        call_hook(run.task, "on_retry", error.exc, context.id, context.args, context.kwargs, info)
        if task_retry.receivers:
            task_retry.send(run.task, request=context, reason=error, einfo=info)
        reason = printable(str(error))
        _log(logging.INFO, "Task %s[%s] retry: %s", run, reason)
        return self._shown(Outcome(OutcomeKind.RETRY, run.runtime, reason, result=result), error.exc or error, text)

    def _rejected(self, run: Run, error: Reject) -> Outcome:
        requeue = bool(error.requeue)
        reason = printable(safe_str(error.reason))
        _log(logging.WARNING, "Task %s[%s] reject requeue=%s: %s", run, requeue, reason)
        result = None if requeue else self.state(run.task, run.headers, run.context, states.FAILURE, error)
        if task_rejected.receivers:
            task_rejected.send(run.task, message=run.context, exc=error)
        return Outcome(OutcomeKind.REJECT, run.runtime, reason, requeue=requeue, result=result)

    def succeeded(self, run: Run, value: Any, outcome: Outcome) -> None:
        """Hooks, receivers and the log line of a run that returned `value`; called only if one of them is wanted."""
        context = run.context
        if task_success.receivers:
            task_success.send(run.task, result=value)
        call_hook(run.task, "on_success", value, context.id, context.args, context.kwargs)
        call_hook(run.task, "after_return", states.SUCCESS, value, context.id, context.args, context.kwargs, None)
        if self.verbose:
            outcome.shown = printable(bounded_repr(value, SHOWN_CHARS), SHOWN_CHARS)
        if log.isEnabledFor(logging.INFO):
            shown = printable(bounded_repr(value, run.task.resultrepr_maxsize), run.task.resultrepr_maxsize)
            _log(logging.INFO, "Task %s[%s] succeeded in %ss: %s", run, run.runtime, shown)


def has_hook(task: Task[..., Any, Any], name: str) -> bool:
    """Whether the task's class overrides a hook."""
    return getattr(type(task), name) is not getattr(Task, name)


def call_hook(task: Task[..., Any, Any], name: str, *args: Any) -> None:
    """Call a hook if there is one. What it raises is logged: the run has ended as it ended."""
    if not has_hook(task, name):
        return
    try:
        getattr(task, name)(*args)
    except Exception:  # user code; its bug must not change the outcome
        log.exception("Task %s: %s raised", task.name, name, extra={"action": "hook_failed", "task": task.name})


def _out_of_memory(run: Run) -> Outcome:
    """What the system does to a process without memory, an exception does here: the run is lost, and counted. There may
    be more memory elsewhere, or later."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts in KiB on Linux, in bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 1024**2
    return Outcome(OutcomeKind.LOST, run.runtime, error=f"MemoryError in a process that held {peak} MB at most")


def _log(level: int, text: str, run: Run, *args: Any) -> None:
    if log.isEnabledFor(level):
        if PRINTED in run.context.__dict__:
            flush_output()  # before the line that tells its end
        task_id = printable(run.headers["id"])
        name = printable(str(run.headers.get("shadow") or run.task.name))
        extra = {"action": "task_ended", "task": name, "task_id": task_id, "runtime": run.runtime}
        log.log(level, text, name, task_id, *args, extra=extra)


def _traceback_text(error: BaseException) -> str:
    """The traceback from the task's own frame on, as text, bounded."""
    traceback = error.__traceback__
    try:
        text = "".join(format_exception(type(error), error, traceback.tb_next if traceback is not None else None))
    except Exception:  # a hostile exception class; its bug must not become ours
        return describe_error(error)
    if len(text) > TRACEBACK_CHARS:
        half = TRACEBACK_CHARS // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    return text
