"""The loader of native applications. Runs in executors (and their fork server); the only part that imports the kernel,
apart from the commands."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from time import time
from types import ModuleType
from typing import Any, ClassVar

from kernel_worker.drivers import AppLoader, Call, LoadContext, LoadedApp, ResultBackend
from kernel_worker.types import AppInfo, Job, Outcome, OutcomeKind, QueueSpec, StoredResult, TaskInfo

from . import states
from .app import App
from .canvas_tasks import provide
from .context import Context
from .decoding import NOTHING, check_headers, read_envelope, read_plainly, read_protocol_1, unix_time, usable_id
from .exceptions import (
    DecodeError,
    KernelAppError,
    NotRegistered,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from .execution import NativeJob, Workshop, compile_async_call, compile_call
from .log import TASK_LOGGER, name_tasks_in_log, redirect_output
from .meta import MetaCodec, address
from .representation import printable
from .routing import configured_queues
from .serialization import content_types
from .settings import is_setting
from .signals import (
    task_revoked,
    task_unknown,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
)
from .task import Task
from .transport import PUBLISHERS, RESULTS

log = logging.getLogger(TASK_LOGGER)

_USUAL_NAMES = ("app", "celery")


class NativeLoader(AppLoader):
    """Recognises and loads `kernel_app.App`."""

    name: ClassVar[str] = "native"

    def accepts(self, target: object) -> object | None:
        """An `App`, or the one of a module: named `app` or `celery`, or its only one."""
        if isinstance(target, App):
            return target
        if not isinstance(target, ModuleType):
            return None
        for name in _USUAL_NAMES:
            if isinstance(found := getattr(target, name, None), App):
                return found
        apps = {id(value): value for value in vars(target).values() if isinstance(value, App)}
        return next(iter(apps.values())) if len(apps) == 1 else None

    def load(self, app: object, context: LoadContext) -> LoadedApp:
        """Apply the overrides and import the modules of `imports` and `include`."""
        assert isinstance(app, App)
        app.conf.update({name: value for name, value in context.overrides.items() if is_setting(name)})
        if context.publishers:
            app.connections.drivers.use(PUBLISHERS, context.publishers)
        if context.results:
            app.connections.drivers.use(RESULTS, context.results)
        for module in (*app.conf.imports, *app.conf.include):
            importlib.import_module(module)
        provide(app)
        if app.connections.has_results:
            # Imported here, once for all children of a fork server; and a missing one is told at start.
            app.connections.drivers.find(RESULTS, app.conf.result_backend)
        return NativeApp(app)


class NativeApp(LoadedApp):
    """A native application in an executor."""

    soft_limit_error = SoftTimeLimitExceeded
    hard_limit_error = TimeLimitExceeded
    cancel_error = Terminated

    def __init__(self, app: App) -> None:
        """:raises ConfigError: a setting that only shows now to be impossible."""
        self.app = app
        self._codec = MetaCodec(app.conf, StoredResult)
        self._accept = content_types(app.conf.accept_content)
        self._tasks: dict[str, Task[..., Any, Any]] = {}
        """Those that are compiled."""
        self._calls: dict[str, Call] = {}
        self._async_calls: dict[str, Any] = {}
        self._verbose = False
        self._is_last = False
        """Whether this executor tells of the worker's end."""
        self._shop = Workshop(app, self._codec, self._accept, "")
        self.info = _describe(app, self._accept)

    @property
    def results(self) -> ResultBackend | None:
        backend: ResultBackend | None = self.app.connections.results
        return backend

    @property
    def verbose(self) -> bool:
        """See `LoadedApp.verbose`."""
        return self._verbose

    @verbose.setter
    def verbose(self, verbose: bool) -> None:
        self._verbose = self._shop.endings.verbose = verbose

    def setup(self, node: str, wrap: Callable[[str, Call], Call]) -> None:
        self.app.coroutines.elsewhere = self.run_coroutine
        self._shop = shop = Workshop(self.app, self._codec, self._accept, node)
        name_tasks_in_log()
        if self.app.conf.worker_redirect_stdouts:
            redirect_output(self.app.conf.worker_redirect_stdouts_level)
        shop.endings.verbose = self._verbose
        shop.claim = self.claim
        self._tasks = dict(self.app.tasks)
        for name, task in self._tasks.items():
            call = compile_call(task, shop)
            wrapped = self._calls[name] = wrap(name, call)
            # A call that a plugin has wrapped is run on a thread: the wrapper waits for its end.
            if wrapped is call and (awaited := compile_async_call(task, shop)) is not None:
                self._async_calls[name] = awaited
        worker_process_init.send(self.app)

    def notify(self, event: str) -> None:
        if event == "worker_ready":
            worker_ready.send(self.app)
        elif event == "worker_shutdown":
            self._is_last = True

    def command(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return self.app.commands[name].function(**arguments)

    def teardown(self, reason: str) -> None:
        if self._is_last:
            worker_shutdown.send(self.app)
        worker_process_shutdown.send(self.app, pid=os.getpid(), exitcode=0)

    def run_async(self, job: Job) -> Coroutine[Any, Any, Outcome] | None:
        """See `LoadedApp.run_async`: for tasks of protocol 2 that are `async def`."""
        try:
            envelope = read_envelope(job.raw, job.payload)
            call = self._async_calls.get(str(envelope.headers.get("task")))
            if call is None:
                return None
            check_headers(envelope.headers)
        except DecodeError:
            return None  # `run` says what is wrong
        started: Coroutine[Any, Any, Outcome] = call(NativeJob(job, envelope, envelope.headers, None))
        return started

    def read(self, job: Job) -> Job:
        if job.conclude is not None:
            return job
        found = read_plainly(job.raw, job.payload, self._accept, self._shop.max_body_bytes)
        if found is None:
            return job
        envelope, call = found
        read = NativeJob(job, envelope, envelope.headers, call)
        task = self._tasks.get(envelope.headers["task"])
        if task is not None and envelope.headers.get("expires") is None:
            read.context = self._shop.context(read, task, call)
        return read

    def run(self, job: Job) -> Outcome:
        read = job if isinstance(job, NativeJob) else self._read(job)
        if isinstance(read, Outcome):
            return read
        compiled = self._calls.get(read.headers["task"])
        return self._unknown(read) if compiled is None else compiled(read)

    def _read(self, job: Job) -> NativeJob | Outcome:
        """The job with its message read, or the outcome of one that cannot be run, or not yet."""
        headers: Mapping[str, Any] = {}
        try:
            envelope = read_envelope(job.raw, job.payload)
            headers = envelope.headers
            if "task" in headers:
                native = NativeJob(job, envelope, envelope.headers, None)
            else:
                headers, call = read_protocol_1(envelope, self._accept, self._shop.max_body_bytes)
                native = NativeJob(job, envelope, dict(headers), call)
                if headers["eta"] and (due := unix_time(headers["eta"], "eta")) > time():
                    return Outcome(OutcomeKind.DEFER, until=due)
            check_headers(headers)
        except DecodeError as error:
            if usable_id(headers.get("id")) is None:
                return Outcome(OutcomeKind.INVALID, error=str(error))
            return self._shop.invalid(headers, error, None)
        return native

    def _unknown(self, job: NativeJob) -> Outcome:
        name = job.headers["task"]
        log.error(
            "Received unregistered task %s[%s]",
            printable(name),
            printable(job.headers["id"]),
            extra={"action": "task_unknown", "task": printable(name), "task_id": printable(job.headers["id"])},
        )
        error = NotRegistered(name)
        if task_unknown.receivers:
            task_unknown.send(self.app, message=job, exc=error, name=name, id=job.headers["id"])
        return Outcome(OutcomeKind.UNKNOWN, error=printable(name), result=self._fail(job, None, error))

    def conclude(self, job: Job, kind: int, error: str) -> StoredResult | None:
        """See `LoadedApp.conclude`. Also tells those that follow (chain, errbacks) of a failure."""
        try:
            envelope = read_envelope(job.raw, job.payload)
            headers: dict[str, Any] = envelope.headers
            call = None
            if "task" not in headers:
                headers, call = read_protocol_1(envelope, self._accept, self._shop.max_body_bytes)
        except DecodeError:
            return None
        if usable_id(headers.get("id")) is None:
            return None
        native = NativeJob(job, envelope, headers, call)
        task = self.app.tasks.get(headers["task"]) if isinstance(headers.get("task"), str) else None
        failure = _failure(job, kind, error, str(headers.get("task")))
        if isinstance(failure, TaskRevokedError):
            if task_revoked.receivers:
                is_late = kind == OutcomeKind.EXPIRED
                request = Context(headers, owner=task)
                is_killed = kind == OutcomeKind.REVOKED and error == "terminated"
                task_revoked.send(task, request=request, terminated=is_killed, signum=None, expired=is_late)
            state = self._shop.endings.state(task, headers, None, states.REVOKED, failure)
            return None if state is None else address(state, envelope.properties)
        return self._fail(native, task, failure)

    def _fail(self, job: NativeJob, task: Task[..., Any, Any] | None, error: Exception) -> StoredResult | None:
        """The state of a message that failed without being run; its chain and errbacks are told."""
        try:
            call = self._shop.read(job)
        except DecodeError:
            return self._shop.endings.state(task, job.headers, None, states.FAILURE, error)
        context = self._shop.context(job, task, call)
        if call.embed is not NOTHING:
            self._shop.followers.failed(job.headers, context, call.embed, error, None)
        return self._shop.endings.state(task, job.headers, context, states.FAILURE, error)


def _failure(job: Job, kind: int, error: str, name: str) -> Exception:
    """The exception that stands for an end the kernel decided on."""
    if kind == OutcomeKind.LOST:
        return WorkerLostError(error)
    if kind == OutcomeKind.TIMEOUT or (kind == OutcomeKind.FAILURE and error == TimeLimitExceeded.__name__):
        return TimeLimitExceeded(int(job.hard) if job.hard.is_integer() else job.hard)
    if kind == OutcomeKind.FAILURE and error == SoftTimeLimitExceeded.__name__:
        return SoftTimeLimitExceeded()
    if kind in (OutcomeKind.EXPIRED, OutcomeKind.REVOKED):
        return TaskRevokedError(error or ("expired" if kind == OutcomeKind.EXPIRED else "revoked"))
    if kind == OutcomeKind.UNKNOWN:
        return NotRegistered(name)
    if kind == OutcomeKind.INVALID:
        return DecodeError(error)
    return KernelAppError(error)


def _describe(app: App, accept: frozenset[str]) -> AppInfo:
    conf = app.conf
    settings: dict[str, Any] = {"broker_url": conf.broker_url, "result_backend": conf.result_backend}
    for name, value in conf.explicit().items():
        plain = value.total_seconds() if isinstance(value, timedelta) else value
        try:
            json.dumps(plain)
        except (TypeError, ValueError):
            continue  # objects (queues, routes) mean something in this process only
        settings[name] = plain
    queues = configured_queues(conf).values()
    warnings = tuple(
        f"accept_content has {kind}: whoever can write to the broker can run any code in this worker"
        for kind in sorted(accept)
        if kind in ("application/x-python-serialize", "application/x-pickle")
    )
    return AppInfo(
        name=app.name,
        kind=NativeLoader.name,
        tasks={name: _task_info(task) for name, task in app.tasks.items()},
        settings=settings,
        queues=tuple(
            QueueSpec(queue.name, queue.exchange, queue.exchange_type, queue.routing_key, queue.queue_arguments)
            for queue in queues
        ),
        default_queue=conf.task_default_queue,
        warnings=warnings,
        commands={name: command.described() for name, command in app.commands.items()},
    )


def _task_info(task: Task[..., Any, Any]) -> TaskInfo:
    both = task.acks_on_failure_or_timeout
    return TaskInfo(
        name=task.name,
        acks_late=bool(task.acks_late),
        time_limit=_own(task, "time_limit"),
        soft_time_limit=_own(task, "soft_time_limit"),
        rate_limit=None if task.rate_limit is None else str(task.rate_limit),
        reject_on_worker_lost=task.reject_on_worker_lost,
        acks_on_failure=both if task.acks_on_failure is None else task.acks_on_failure,
        acks_on_timeout=both if task.acks_on_timeout is None else task.acks_on_timeout,
    )


def _own(task: Task[..., Any, Any], option: str) -> Any:
    """An option set on the task itself or its base class. The setting it follows otherwise is reported as a
    setting, which the worker's command line overrides."""
    bases = type(task).__mro__[: type(task).__mro__.index(Task)]
    return getattr(task, option) if option in vars(task) or any(option in vars(base) for base in bases) else None
