"""The composition root: puts the rooms together, runs them, and takes them down again.

The loop runs on the main thread. With an inline pool (solo) the main thread runs the tasks and the loop a
second one. Signals only ask; the loop acts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from . import __version__, executor_main, loading
from .bus import Bus
from .clock import Clock
from .config import Config, Secret, misspelt_variables
from .control import ControlTable
from .drivers import Layout, Pool
from .errors import (
    BrokerUnavailable,
    ConfigError,
    ExecutorError,
    KernelWorkerError,
    StartError,
    StartInterrupted,
    UsageError,
)
from .hooks import Hooks
from .logs import configure_logging
from .loop import Loop
from .operations import Operations
from .pidfile import Pidfile
from .registry import Registry
from .selection import Selection
from .spawn import Birth, ExecSpawner, InlineSpawner, Spawner
from .steps import Sequence, order
from .supervisor import Handle, Supervisor
from .types import AppInfo, PoolCapability, QueueSpec
from .wire import Channel

log = logging.getLogger("kernel_worker.worker")

DEFAULT_URL = Secret("sqlite:///kw.db")
LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(process)d] %(message)s"
KILL_WAIT_S = 3.0


class StepContext:
    """What a boot step gets: the worker's shared parts, and the APIs of the steps it requires."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.loop = worker.loop
        self.bus = worker.bus

    @property
    def config(self) -> Config:
        """The configuration; from the pool step on it contains the application's settings."""
        return self.worker.config

    def api(self, name: str) -> object:
        """What the step `name` returned from `start`. Only for steps that the caller requires."""
        sequence = self.worker.sequence
        step = sequence.current
        if step is not None and name not in step.requires:
            raise StartError(f"step {step.name!r} asks for {name!r} without requiring it", step=step.name)
        return sequence.apis[name]

    def wait(self, condition: Callable[[], object], what: str | Callable[[], str]) -> None:
        """Turn the loop until `condition()` holds.

        :raises StartInterrupted: a signal asked to stop.
        :raises BrokerUnavailable: `--startup-timeout` is over.
        """
        worker = self.worker
        supervisor = worker.supervisor
        met = self.loop.run_until(
            lambda: condition() or worker.stop_reason or supervisor.failure, worker.start_deadline
        )
        if supervisor.failure is not None:
            raise supervisor.failure
        if worker.stop_reason:
            raise StartInterrupted(f"stopped while starting: {worker.stop_reason}")
        if not met:
            text = what if isinstance(what, str) else what()
            raise BrokerUnavailable(f"gave up after --startup-timeout: still waiting for {text}")


class Worker:
    """One worker, composed from a configuration and a selection of plugins."""

    def __init__(
        self, config: Config, registry: Registry, selection: Selection, hooks: Hooks, prestarted: object = None
    ) -> None:
        self.config = config
        self.registry = registry
        self.selection = selection
        self.hooks = hooks
        self.node = config.worker.node
        self.incarnation = f"{self.node}.{os.getpid()}.{os.urandom(4).hex()}"
        self.loop = Loop()
        self.bus = Bus()
        self.supervisor = Supervisor(self.loop)
        self.dispatcher: Any = None
        self.broker_host: Any = None
        self.control = ControlTable()
        self.clock = Clock()
        self.operations = Operations(self)
        self.pool_name = registry.choose_pool(selection, config.worker.pool)
        self.pool: Pool = registry.load_pool(selection, self.pool_name)(config.section(self.pool_name))
        self.stop_reason = ""
        self.cold = False
        self.start_deadline: float | None = None
        self.exit_code = 0
        self._failure: KernelWorkerError | None = None
        self.started_at = time.time()
        self._births: queue.SimpleQueue[Birth | None] = queue.SimpleQueue()
        self._spawner: Spawner | None = None
        self._prestarted = prestarted
        self._serves_inline = False
        """Whether the main thread is an executor now."""
        self._pidfile = Pidfile(config.worker.pidfile) if config.worker.pidfile else None
        self._check_limits()
        self.sequence = self._compose()

    # -- composition

    def _compose(self) -> Sequence:
        config, hooks = self.config, self.hooks
        hooks.kw_subscribe(self.bus, config)
        self.bus.freeze()
        self.control.promise(self.selection.control, lambda: self.registry.control_commands(self.selection))
        self.control.add(hooks.kw_control_commands(config))
        steps, owners = hooks.boot_steps(config)
        return Sequence(order(steps, owners), owners)

    def _check_limits(self) -> None:
        options, can = self.config.worker, self.pool.capabilities
        if options.time_limit and PoolCapability.HARD_LIMIT not in can:
            raise UsageError(
                f"pool {self.pool_name!r} cannot end a task at a hard time limit (--time-limit {options.time_limit:g}): "
                "its process cannot be replaced",
                hint="use -P prefork, or --soft-time-limit",
            )
        processes = getattr(options.concurrency, "processes", None)
        if processes is not None and self.pool.layout(2).slots == 1:
            slots = self.config.worker.tasks_at_once // processes
            raise UsageError(
                f"pool {self.pool_name!r} runs one task in each process, not --concurrency {processes}x{slots}",
                hint="say how many tasks at once, as in -c 4; or use -P threads, gevent or asyncio",
            )
        if options.concurrency and options.concurrency > 1 and PoolCapability.SEVERAL_SLOTS not in can:
            raise UsageError(
                f"pool {self.pool_name!r} runs one task at a time, not --concurrency {options.concurrency}",
                hint="use -P prefork, or leave -c out",
            )

    @property
    def broker_url(self) -> Secret:
        """Where messages come from."""
        return self.config.worker.broker or DEFAULT_URL

    @property
    def app(self) -> AppInfo:
        """The application; there is one from the pool step on."""
        assert self.supervisor.app is not None
        return self.supervisor.app

    def layout(self) -> Layout:
        """Processes and slots, by the concurrency that is configured."""
        return self._layout_for(self.config.worker.tasks_at_once)

    def _layout_for(self, count: int) -> Layout:
        processes = getattr(self.config.worker.concurrency, "processes", None)
        if processes is None:
            return self.pool.layout(count)
        each = self.pool.layout(-(-count // processes))
        return Layout(each.processes * processes, each.slots, each.inline)

    @property
    def concurrency(self) -> int:
        """Tasks the pool runs at once now, when all its executors are up."""
        layout = self.supervisor.layout
        return layout.processes * layout.slots

    def set_concurrency(self, count: int) -> int:
        """Grow or shrink the pool to `count` tasks at once. Loop thread; does not wait: executors come up and retire
        later, those that run nothing first, and none is interrupted.

        :return: how many it is now (`concurrency`): a pool may round up to whole executors.
        :raises ValueError: `count` is below 1, or the pool runs one task at a time.
        """
        if count < 1:
            raise ValueError(f"{count} tasks at once: at least 1")
        if count > 1 and PoolCapability.SEVERAL_SLOTS not in self.pool.capabilities:
            raise ValueError(f"pool {self.pool_name!r} runs one task at a time")
        self.supervisor.resize(self._layout_for(count))
        return self.concurrency

    def queues(self) -> tuple[QueueSpec, ...]:
        """The queues to consume from: `-Q`, else the application's without `-X`, else its default queue."""
        known = {spec.name: spec for spec in self.app.queues}
        names, excluded = self.config.worker.queue_names, self.config.worker.exclude_queues
        if not names:
            all_queues = self.app.queues or (QueueSpec(self.app.default_queue),)
            found = tuple(spec for spec in all_queues if spec.name not in excluded)
            if not found:
                raise UsageError(
                    f"-X {','.join(excluded)} leaves no queue to consume from",
                    hint=f"queues of the application: {', '.join(spec.name for spec in all_queues)}",
                )
            return found
        missing = [name for name in names if name not in known]
        if missing and self.app.settings.get("task_create_missing_queues") is False:
            raise UsageError(
                f"queue {missing[0]!r} is not in task_queues, and task_create_missing_queues is off",
                hint=f"queues of the application: {', '.join(known) or 'none'}",
            )
        return tuple(known.get(name) or self._missing_queue(name) for name in names)

    def _missing_queue(self, name: str) -> QueueSpec:
        """A queue that no setting describes, as the application wants such queues."""
        settings = self.app.settings
        arguments: dict[str, Any] = {}
        if settings.get("task_create_missing_queue_type") == "quorum":
            arguments["x-queue-type"] = "quorum"
        if settings.get("task_queue_max_priority") is not None:
            arguments["x-max-priority"] = settings["task_queue_max_priority"]
        kind = settings.get("task_create_missing_queue_exchange_type") or "direct"
        return QueueSpec(name, exchange_type=kind, arguments=arguments)

    def hello(self) -> dict[str, Any]:
        """What executors are told: plain JSON."""
        return make_hello(self.config, self.registry, self.selection, self.node, self.pool.runtime)

    def make_spawner(self) -> Spawner:
        """The pool's spawner."""
        kind: type[Spawner] = loading.import_string(self.pool.spawner)
        self._spawner = spawner = kind(self.loop, self.hello(), self.supervisor)
        spawner.prestarted = self._prestarted
        if isinstance(spawner, InlineSpawner):
            spawner.on_birth = self._births.put
        return spawner

    def preload_broker(self) -> None:
        """Import the broker driver ahead of time, if it is known which one it will be.

        What is wrong with it is told when it is needed: the application may still name another URL.
        """
        drivers = {entry.target: name for name, entry in self.selection.brokers.items()}
        url = self.config.worker.broker
        if url is None and len(drivers) == 1:
            url = Secret(f"{next(iter(drivers.values()))}://")
        if url is not None:
            try:
                self.registry.load_broker(self.selection, url)
            except KernelWorkerError:
                log.debug("the broker driver could not be preloaded", exc_info=True)

    def adopt_application(self) -> None:
        """Take over the settings of the application that nobody else has set."""
        self.config = self.config.with_settings(self.app.settings, self.hooks.kw_configure)
        self._check_limits()
        for warning in self.app.warnings:
            log.warning("%s", warning, extra={"action": "app_warning"})

    # -- life

    def run(self) -> int:
        """The worker's whole life; returns the exit code. Main thread of the process."""
        if self._pidfile is not None:
            self._pidfile.acquire()
        try:
            self.loop.install_signals(
                {
                    signal.SIGTERM: lambda number: self.stop("SIGTERM"),
                    signal.SIGINT: self._interrupted,
                    signal.SIGQUIT: lambda number: self.stop("SIGQUIT", cold=True),
                    signal.SIGHUP: lambda number: self.stop("SIGHUP"),
                    # Their default is to kill, and tools send them to processes that know better.
                    signal.SIGUSR1: lambda number: None,
                    signal.SIGUSR2: lambda number: None,
                }
            )
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            # The loop must not wait long for the interpreter while another thread computes.
            sys.setswitchinterval(0.0005)
            if self.layout().inline:
                return self._run_inline()
            return self._live()
        finally:
            self.loop.close()
            if self._pidfile is not None:
                self._pidfile.release()
            executor_main.flush_output()

    def _run_inline(self) -> int:
        failure: list[BaseException] = []

        def live() -> None:
            try:
                self._live()
            except BaseException as error:  # carried over to the main thread
                failure.append(error)
            finally:
                self._births.put(None)
                if self._serves_inline:  # a task, or the import of the application, that does not end
                    self._leave_at_once(failure[0] if failure else None)

        thread = threading.Thread(target=live, name="kw-loop")
        thread.start()
        while (birth := self._births.get()) is not None:
            code = 1
            self._serves_inline = True
            try:
                if self._births.empty():  # else the worker is over, and nobody would ever tell the executor
                    code = executor_main.main(Channel(birth.sock), birth.board)
            except BaseException:  # sys.exit() in a hook, too. Told to the supervisor by its frames; here for the log
                log.exception("inline executor failed", extra={"action": "executor_failed"})
            finally:
                self._serves_inline = False
                birth.sock.close()
                assert isinstance(self._spawner, InlineSpawner)
                self._spawner.finished(birth.key, code)
        thread.join()
        if failure:
            raise failure[0]
        return self.exit_code

    def _leave_at_once(self, failure: BaseException | None) -> None:
        """End the process from the loop's thread, while the main thread does not come back. Everything is settled."""
        code = self.exit_code
        if failure is not None:
            code = failure.exit_code if isinstance(failure, KernelWorkerError) else 1
            with contextlib.suppress(OSError):  # nobody reads it: no reason to stay
                print(f"kw: {failure}", file=sys.stderr, flush=True)
        if self._pidfile is not None:
            self._pidfile.release()
        executor_main.flush_output()
        os._exit(code)

    def _live(self) -> int:
        ctx = StepContext(self)
        if self.config.worker.startup_timeout:
            self.start_deadline = time.monotonic() + self.config.worker.startup_timeout
        self.hooks.kw_worker_starting(self)
        try:
            self.sequence.start(ctx)
        except StartInterrupted:
            return 0
        try:
            self.say(self.banner())
            self.hooks.kw_worker_ready(self)
            self.say(f"{self.node} ready.")
        except KernelWorkerError as error:  # a plugin's bug: what was started is stopped, then it is told
            self._failure = error
        self.loop.run_until(lambda: self.stop_reason or self._failure or self.supervisor.failure)
        return self._shut_down(ctx)

    def stop(self, reason: str, cold: bool = False) -> None:
        """Begin to stop. Loop thread; may be called again, only to be faster."""
        self.cold = self.cold or cold
        self.stop_reason = self.stop_reason or reason

    def fail(self, error: KernelWorkerError) -> None:
        """Stop because a plugin is broken: what runs is put back, and `error` is told. Loop thread."""
        self._failure = self._failure or error

    def _interrupted(self, number: int) -> None:
        self.stop("SIGINT", cold=bool(self.stop_reason))

    def _shut_down(self, ctx: StepContext) -> int:
        failure = self._failure or self.supervisor.failure
        reason = self.stop_reason or str(failure)
        deadline = time.monotonic() + (0.0 if self.cold or failure else self.config.worker.grace)
        dispatcher = self.dispatcher
        try:
            self.hooks.kw_worker_closing(self, reason)
        except KernelWorkerError as error:  # running work is not given up for it
            log.error("%s", error, extra={"action": "hook_failed"})
        self.sequence.close(ctx)
        running = len(dispatcher.in_flight)
        waiting = f", waiting up to {self.config.worker.grace:g} s for {running} running" if running else ""
        self.say(f"{self.node} stops ({reason}){waiting}")
        self.finish_running(deadline)
        clean = self.sequence.stop(ctx, time.monotonic() + KILL_WAIT_S + 2.0)
        accounted = clean and not dispatcher.held and self.broker_host.settled
        self.exit_code = (failure.exit_code if failure else 0) or (0 if accounted else 1)
        self.hooks.kw_worker_stopped(self, self.exit_code)
        if failure is not None:
            raise failure
        self.say(f"{self.node} stopped.")
        return self.exit_code

    def finish_running(self, deadline: float) -> None:
        """Closed: let what runs finish until the monotonic deadline, then put it back. Loop thread."""
        self.loop.run_until(lambda: not self._busy() or self.cold, deadline)
        if self._busy():
            self._put_back()

    def _busy(self) -> bool:
        dispatcher = self.dispatcher
        # What is ready waits for an executor to store its end; while closing, none comes up any more.
        unstored = dispatcher.ready and self.supervisor.executors
        return bool(dispatcher.in_flight or unstored or self.broker_host.may_deliver)

    def _put_back(self) -> None:
        """The grace period is over: what still runs goes back to its queue, without an attempt counted."""
        # Killed first, then put back: the other order could run a task twice at once.
        supervisor = self.supervisor
        for handle in list(supervisor.executors.values()):
            if handle.outstanding:
                supervisor.kill(handle, "killed: the grace period is over")
        if isinstance(self._spawner, InlineSpawner):
            # A thread cannot be killed: the process ends as soon as the message is back in the queue.
            for handle in list(supervisor.executors.values()):
                supervisor.forget(handle)
            return
        self.loop.run_until(lambda: not self.dispatcher.in_flight, time.monotonic() + KILL_WAIT_S)

    # -- telling

    def say(self, text: str) -> None:
        """Tell the person at the terminal; a closed terminal is no reason to stop."""
        try:
            print(text, flush=True)
        except OSError:
            executor_main.flush_output()

    def broker_up(self) -> None:
        """Connected. Loop thread."""
        log.info("connected to %s", self.broker_url, extra={"action": "broker_up"})
        self.hooks.kw_broker_up(self)

    def broker_down(self, error: str) -> None:
        """Connection lost. Loop thread."""
        self.hooks.kw_broker_down(self, error)

    def executor_up(self, handle: Handle) -> None:
        """An executor is ready. Loop thread."""
        self._tell(self.hooks.kw_executor_up, handle.pid)

    def executor_down(self, handle: Handle, reason: str) -> None:
        """An executor has ended. Loop thread."""
        self._tell(self.hooks.kw_executor_down, handle.pid, reason)

    def _tell(self, hook: Callable[..., None], *arguments: object) -> None:
        """Call a hook in the middle of accounting for an executor, which a plugin's bug must not cut short."""
        try:
            hook(self, *arguments)
        except KernelWorkerError as error:
            log.error("%s", error, extra={"action": "hook_failed"})

    def banner(self) -> str:
        """What runs here, for people."""
        config, selection = self.config.worker, self.selection
        layout = self.layout()
        slots = f"{layout.processes} × {layout.slots}" if layout.slots > 1 else str(layout.processes)
        broker = self.registry.broker_entry(selection, self.broker_url)
        pool = selection.pools[self.pool_name]
        results = self.app.settings.get("result_backend") or config.result_backend or "disabled"
        url = results.reveal() if isinstance(results, Secret) else str(results)
        lines = [
            f"{self.node}  kw {__version__}  python {sys.version.split()[0]}",
            f"  app:      {self.app.name} ({config.app}, {self.app.kind})",
            f"  broker:   {self.broker_url}  [{broker}]",
            f"  results:  {'none' if url.startswith('disabled') else Secret(url)}",
            f"  pool:     {self.pool_name}, {slots} at once  [{pool}]",
            f"  steps:    {' → '.join(step.name for step in self.sequence.ordered)}",
            f"  plugins:  {', '.join(str(entry) for entry in selection.plugins.values()) or 'none'}",
            "  queues:   " + ", ".join(spec.name for spec in self.queues()),
            "  tasks:",
            *(f"    . {name}" for name in sorted(self.app.tasks) if not name.startswith("celery.")),
        ]
        return "\n".join(lines)


def make_hello(config: Config, registry: Registry, selection: Selection, node: str, runtime: str) -> dict[str, Any]:
    """The HELLO value: everything an executor needs to know, so that it scans nothing itself."""
    options = config.worker
    if not options.app:
        raise UsageError("no application: say which one to run", hint="kw run -A module[:attribute]")
    overrides: dict[str, Any] = {}
    if options.broker is not None:
        overrides["broker_url"] = options.broker.reveal()
    if options.result_backend is not None:
        overrides["result_backend"] = options.result_backend.reveal()
        if "://" in overrides["result_backend"] and not overrides["result_backend"].startswith("disabled"):
            registry.result_entry(selection, options.result_backend)  # refused here if it was not selected
    return {
        "runtime": runtime,
        "app": options.app,
        "loaders": list(registry.import_strings(selection, "apps").values()),
        "plugins": list(registry.import_strings(selection, "executor").values()),
        "context": {
            "overrides": overrides,
            "publishers": registry.import_strings(selection, "publishers"),
            # All that are installed: which one the application names by itself is not known yet.
            "results": registry.import_strings(registry.select(), "results"),
        },
        "node": node,
        "workdir": os.getcwd(),
        "log": log_options(config, selection),
    }


def log_options(config: Config, selection: Selection) -> dict[str, Any]:
    """How the kernel process and its executors log: plain JSON."""
    packages = {entry.target.partition(":")[0].partition(".")[0] for entry in selection}
    return {
        "level": config.worker.loglevel.upper(),
        "file": config.worker.logfile,
        "format": LOG_FORMAT,
        "style": config.worker.log_format,
        "node": config.worker.node,
        "loggers": sorted({"kernel_worker", *packages}),
    }


def run(config: Config, registry: Registry, selection: Selection, hooks: Hooks, prestarted: object = None) -> int:
    """Run a worker until it is told to stop; the exit code. Main thread.

    :param prestarted: what was begun for the pool ahead of all else (`kernel_worker.early`).
    """
    make_hello(config, registry, selection, config.worker.node, "")  # a missing application is told before all else
    try:
        configure_logging(log_options(config, selection))
    except OSError as error:
        raise ConfigError(
            f"logfile {config.worker.logfile}: {error.strerror}", hint="choose another with -f"
        ) from error
    for sentence in misspelt_variables(config, os.environ):
        log.warning("%s", sentence, extra={"action": "variable_misspelt"})
    return Worker(config, registry, selection, hooks, prestarted).run()


def inspect_app(config: Config, selection: Selection, registry: Registry) -> AppInfo:
    """Load the application in a short-lived process and report what is in it. For commands without a worker.

    :raises UsageError: it cannot be found.
    :raises ExecutorError: it fails to import, or says nothing.
    """
    loop = Loop()
    supervisor = Supervisor(loop)
    hello = make_hello(config, registry, selection, config.worker.node, "kernel_worker.executor:BlockingRuntime")
    spawner = ExecSpawner(loop, hello, supervisor)
    try:
        supervisor.start_loading(spawner, hello)
        loop.run_until(
            lambda: supervisor.app or supervisor.failure or not supervisor.executors, time.monotonic() + 60.0
        )
    finally:
        supervisor.close()
        spawner.stop()
        loop.close()
    if supervisor.failure is not None:
        raise supervisor.failure
    if supervisor.app is None:
        raise ExecutorError(f"application {config.worker.app} did not load within 60 s")
    return supervisor.app
