"""The executor's side: load the application, run jobs, store results, report outcomes.

Runs in an executor process (or, for inline pools, on the worker's main thread). Imports of the kernel only
what an executor needs: its memory is paid once per child.

Two threads: the runtime's (it runs the tasks; for one-slot pools the main thread) and the minder. The minder
uses thread primitives that no monkey-patching replaced. It raises soft limits, reads frames while a task
runs long, gives back jobs that wait behind a long task, stores results that would otherwise wait for it,
and ends the process when the kernel is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import FrameType
from typing import Any

from .board import Board
from .drivers import AppLoader, Call, LoadContext, LoadedApp, Native, ResultBackend, Runtime
from .types import Job, Outcome, OutcomeKind, StoredResult
from .wire import (
    CONCLUDE_HEAD,
    DONE_RECORD,
    FLAG_PAYLOAD,
    FLAG_REDELIVERED,
    HEAD,
    RUN_HEAD,
    Channel,
    ChannelClosed,
    Frame,
    pack,
    pack_json,
)

log = logging.getLogger("kernel_worker.executor")

LONG_TASK_S = 0.02
"""A task that runs longer lets nobody wait behind it: the minder reads frames and gives back jobs."""
FLUSH_EVERY = 32
"""Outcomes reported (and results stored) together at most."""
FLUSH_AFTER_S = 0.005
"""An outcome waits at most this long for others to be reported with."""
MINDER_TICK_S = 0.01
MINDER_IDLE_S = 1.0
"""The minder sleeps for good when nothing has run for this long; the next job wakes it."""
MAX_UNSTORED = 1000
"""Outcomes kept in memory while the result backend is away, before the executor stops taking jobs."""


class _PlainNative:
    """Thread primitives of an unpatched process."""

    def start_thread(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="kw-minder", daemon=True).start()

    def lock(self) -> Any:
        return threading.Lock()

    def poll(self, fds: Sequence[int], timeout: float) -> list[int]:
        return list(select.select(list(fds), [], [], timeout)[0])


class BlockingRuntime(Runtime):
    """One slot: jobs run one after the other on the main thread. Prefork and solo."""

    def __init__(self) -> None:
        self._aim: tuple[int, BaseException] | None = None
        self._executor: Executor | None = None

    def prepare(self) -> None:
        """Nothing to patch."""

    def native(self) -> Native:
        return _PlainNative()

    def serve(self, executor: Executor) -> None:
        self._executor = executor
        signal.signal(signal.SIGUSR1, self._raise_in_task)
        while (job := executor.next()) is not None:
            executor.execute(job, 0)

    def cancel(self, tag: int, error: BaseException) -> bool:
        executor = self._executor
        if executor is None or executor.running != tag:
            return False
        self._aim = (tag, error)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        return True

    def _raise_in_task(self, signum: int, frame: FrameType | None) -> None:
        aim, self._aim = self._aim, None
        executor = self._executor
        if aim is not None and executor is not None and executor.running == aim[0]:
            raise aim[1]


class Executor:
    """What a runtime works with: `next()` gives jobs, `execute()` runs one and reports its outcome."""

    def __init__(self, channel: Channel, board: Board, runtime: Runtime, app: LoadedApp) -> None:
        self.channel = channel
        self.board = board
        self.app = app
        self.runtime = runtime
        self.native: Native = runtime.native()
        self.running = 0
        """Tag of the job that a one-slot runtime runs now, 0 between jobs."""
        self.retiring = False
        self.exit_reason = "retired"
        self._inbox: deque[Job] = deque()
        self._started_at = 0.0
        self._soft_deadline = 0.0
        self._reading = self.native.lock()
        self._flushing = self.native.lock()
        self._sending = self.native.lock()
        self._ending = self.native.lock()
        self._ended: list[tuple[Job, Outcome]] = []
        self._first_ended_at = 0.0
        self._retry_store_at = 0.0
        self._store_delay = 0.1
        self._told_unstored = 0
        self._done_through = 0
        self._to_tell = 0
        """Of what has ended, how many must be reported or stored for their end to be known."""
        self._over = False
        self._minder_asleep = True
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_w.setblocking(False)

    # -- the runtime's side

    def start_minder(self) -> None:
        """Start the minder thread. After any fork, before the first job."""
        self.native.start_thread(self._mind)

    def stop_minder(self) -> None:
        """End the minder thread: an inline executor's process goes on without it."""
        self._over = True
        self._wake_minder()

    def next(self) -> Job | None:
        """The next job; waits for one. None when there will be no more: retired, or the kernel is gone."""
        while True:
            try:
                return self._inbox.popleft()
            except IndexError:
                pass
            self.flush()
            if self.retiring:
                self._leave()
                return None
            while len(self._ended) >= MAX_UNSTORED:  # backpressure: the result backend is away
                time.sleep(0.05)
                self.flush()
            with self._reading:
                if self._inbox or self.retiring:
                    continue
                try:
                    self._handle(self.channel.receive())
                except ChannelClosed:
                    self.retiring, self.exit_reason = True, "the kernel process is gone"

    def execute(self, job: Job, slot: int) -> None:
        """Run one job in a slot and report how it ended. On the thread or greenlet of the slot."""
        begun = time.monotonic()
        self._started_at = begun
        self.board.start(slot, job.tag, begun, self._done_through)
        self._soft_deadline = begun + job.soft if job.soft else 0.0
        self.running = job.tag
        # From here until `running` is 0 a limit may be raised between any two calls: all of them are inside the try.
        try:
            if self._minder_asleep:
                self._wake_minder()
            outcome = self._conclude(job) if job.conclude is not None else self.app.run(job)
        except BaseException as error:  # run() lets no task's error through: a limit that came late, or a bug
            self.running = 0
            outcome = self._escaped(job, error)
        self.running = 0
        now = time.monotonic()
        outcome.runtime = outcome.runtime or now - begun
        with self._ending:
            if outcome.kind is not OutcomeKind.SUCCESS or outcome.result is not None:
                self._to_tell += 1
            elif not self._to_tell:
                self._done_through = job.tag
            self.board.idle(slot, self._done_through)
            if not self._ended:
                self._first_ended_at = now
            self._ended.append((job, outcome))
            due = len(self._ended) >= FLUSH_EVERY or now - self._first_ended_at > FLUSH_AFTER_S
        if due:
            self.flush()

    def _conclude(self, job: Job) -> Outcome:
        assert job.conclude is not None
        return Outcome(job.conclude, error=job.text, result=self.app.conclude(job, job.conclude, job.text))

    def _escaped(self, job: Job, error: BaseException) -> Outcome:
        if isinstance(error, (self.app.soft_limit_error, self.app.hard_limit_error)):
            text = type(error).__name__
        else:
            text = f"internal error: {type(error).__name__}"
            log.critical("job %d escaped", job.tag, exc_info=error, extra={"action": "job_escaped"})
        try:
            result = self.app.conclude(job, OutcomeKind.FAILURE, text)
        except Exception:  # the message itself is broken: the outcome alone must do
            result = None
        return Outcome(OutcomeKind.FAILURE, error=text, result=result)

    # -- reporting

    def flush(self) -> None:
        """Store the results of what has ended, then report it. Any thread; one at a time.

        While the result backend is away nothing is reported, so the messages stay reserved and unacked;
        the minder tries again with back-off.
        """
        if time.monotonic() < self._retry_store_at:
            self._tell_unstored()
            return
        with self._flushing:
            with self._ending:
                ended, self._ended = self._ended, []
            if not ended:
                return
            results = [outcome.result for _, outcome in ended if outcome.result is not None]
            if results and not self._store(results):
                with self._ending:
                    self._ended = ended + self._ended
                self._tell_unstored()
                return
            none_unstored = pack_json(Frame.UNSTORED, 0) if self._told_unstored else b""
            self._told_unstored = 0
            # One send: a reader must never see half a report.
            self._send(none_unstored + _report(ended))
            told = sum(1 for _, each in ended if each.kind is not OutcomeKind.SUCCESS or each.result is not None)
            with self._ending:  # others may have ended meanwhile: only these are known now
                self._to_tell -= told
                self._done_through = max(self._done_through, ended[-1][0].tag)

    def _tell_unstored(self) -> None:
        """Their slots are free although they are not reported: without knowing, the kernel would give nothing more."""
        count = len(self._ended)
        if count != self._told_unstored:
            self._told_unstored = count
            self._send(pack_json(Frame.UNSTORED, count))

    def _store(self, results: list[StoredResult]) -> bool:
        try:
            backend = self.app.results
        except Exception as error:  # it cannot even be opened: nothing is acked that could not be stored
            return self._store_later(error)
        if backend is None:
            return True
        try:
            try:
                backend.store(results)
            except (ConnectionError, TimeoutError):
                raise
            except Exception:
                # Not an outage: the store refuses something. One by one, so that only that one is missing.
                self._store_singly(backend, results)
        except (ConnectionError, TimeoutError) as error:
            return self._store_later(error)
        self._retry_store_at, self._store_delay = 0.0, 0.1
        return True

    def _store_later(self, error: Exception) -> bool:
        self._retry_store_at = time.monotonic() + self._store_delay
        self._store_delay = min(self._store_delay * 2, 5.0)
        log.warning("result backend is away: %s", error, extra={"action": "result_backend_away"})
        return False

    @staticmethod
    def _store_singly(backend: ResultBackend, results: list[StoredResult]) -> None:
        for result in results:
            try:
                backend.store([result])
            except (ConnectionError, TimeoutError):
                raise  # storing those before it once more is harmless
            except Exception:  # named and kept in the log; the task itself has ended
                log.exception(
                    "result of %s refused by the result backend",
                    result.task_id[:64],
                    extra={"action": "result_refused", "task_id": result.task_id[:64]},
                )

    # -- frames

    def _handle(self, frames: list[tuple[int, bytes]]) -> None:
        for kind, payload in frames:
            if kind == Frame.RUN:
                self._inbox.append(_job(payload))
            elif kind == Frame.CONCLUDE:
                self._inbox.append(_conclusion(payload))
            elif kind == Frame.RECALL:
                self._give_back()
            elif kind == Frame.CANCEL:
                order = json.loads(payload)
                limit = order["error"] == "time_limit"
                error = self.app.hard_limit_error(order["value"]) if limit else SystemExit(order["value"])
                self.runtime.cancel(order["tag"], error)
            elif kind == Frame.RETIRE:
                self.retiring = True

    def _give_back(self) -> None:
        tags = []
        while True:
            try:
                tags.append(self._inbox.pop().tag)
            except IndexError:
                break
        if tags:
            self._send(pack_json(Frame.RETURNED, tags))

    def _send(self, data: bytes) -> None:
        with self._sending:
            self.channel.send(data)

    def _leave(self) -> None:
        deadline = time.monotonic() + 5.0
        while self._ended and time.monotonic() < deadline:  # unreported work would be done again
            time.sleep(0.05)
            self._retry_store_at = 0.0  # there is no later
            self.flush()

    # -- the minder

    def _wake_minder(self) -> None:
        self._minder_asleep = False
        try:
            self._wake_w.send(b"\0")
        except OSError:
            pass  # full: it is awake

    def _mind(self) -> None:
        idle_since = time.monotonic()
        while not self._over:
            now = time.monotonic()
            if self.running or self._ended:
                idle_since = now
            if now - idle_since > MINDER_IDLE_S:
                self._sleep_until_woken()
                idle_since = time.monotonic()
                continue
            try:
                self._tick(now)
            except ChannelClosed:
                # The kernel is gone while a task runs. Its lease runs out and the message is
                # delivered again: ending now is what keeps it from running twice at once.
                os._exit(1)
            except Exception:  # the minder must go on whatever one tick meets
                log.exception("minder", extra={"action": "minder_failed"})
        self._wake_r.close()
        self._wake_w.close()

    def _sleep_until_woken(self) -> None:
        self._minder_asleep = True
        if not self.running:  # a job that started in between has seen the flag, or is seen here
            self.native.poll([self._wake_r.fileno()], 3600.0)
        self._minder_asleep = False
        self._drain_wakes()

    def _drain_wakes(self) -> None:
        try:
            self._wake_r.recv(64, socket.MSG_DONTWAIT)
        except OSError:
            pass

    def _tick(self, now: float) -> None:
        tag, long = self.running, now - self._started_at
        if tag and self._soft_deadline and now >= self._soft_deadline:
            self._soft_deadline = 0.0
            self.runtime.cancel(tag, self.app.soft_limit_error())
        if self._ended and now - self._first_ended_at > FLUSH_AFTER_S:
            self.flush()
        if not tag or long < LONG_TASK_S:
            self.native.poll([self._wake_r.fileno()], MINDER_TICK_S)
            self._drain_wakes()
            return
        if self._inbox:
            self._give_back()
        wait = 0.25 if long > 1.0 else MINDER_TICK_S
        if self._soft_deadline:
            wait = min(wait, max(0.0, self._soft_deadline - now))
        readable = self.native.poll([self.channel.fileno()], wait)
        if readable and self.running == tag and self._reading.acquire(blocking=False):
            try:
                self._handle(self.channel.receive(socket.MSG_DONTWAIT))
            finally:
                self._reading.release()


def _report(ended: list[tuple[Job, Outcome]]) -> bytes:
    done: list[bytes] = []
    parts: list[bytes] = []
    for job, outcome in ended:
        if outcome.kind is OutcomeKind.SUCCESS:
            done.append(DONE_RECORD.pack(job.tag, 0, outcome.runtime))
        else:
            parts.append(
                pack_json(
                    Frame.ENDED,
                    {
                        "tag": job.tag,
                        "kind": int(outcome.kind),
                        "runtime": outcome.runtime,
                        # Without halves of surrogate pairs: no broker takes them in a reason.
                        "error": outcome.error[:2000].encode(errors="replace").decode(),
                        "requeue": outcome.requeue,
                        "until": outcome.until,
                    },
                )
            )
    if done:
        parts.append(pack(Frame.DONE, b"".join(done)))
    return b"".join(parts)


def _job(payload: bytes, start: int = 0) -> Job:
    tag, hard, soft, attempts, flags, queue_size, raw_size = RUN_HEAD.unpack_from(payload, start)
    at = start + RUN_HEAD.size
    raw_at = at + queue_size
    end = raw_at + raw_size
    return Job(
        tag,
        payload[raw_at:end],
        payload[end:] if flags & FLAG_PAYLOAD else None,
        payload[at:raw_at].decode(),
        attempts,
        bool(flags & FLAG_REDELIVERED),
        hard,
        soft,
    )


def _conclusion(payload: bytes) -> Job:
    kind, size = CONCLUDE_HEAD.unpack_from(payload)
    at = CONCLUDE_HEAD.size
    job = _job(payload, at + size)
    job.conclude = OutcomeKind(kind)
    job.text = payload[at : at + size].decode()
    return job


# --------------------------------------------------------------------------- coming up


def import_string(text: str) -> Any:
    """The object that "module:attribute" names.

    :raises ImportError: the module or the attribute does not exist.
    """
    module, _, attribute = text.partition(":")
    value: Any = importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise ImportError(f"module {module!r} has no attribute {attribute!r}") from error
    return value


class LoadError(Exception):
    """The application cannot be loaded; the text is for the user, `details` the traceback."""

    def __init__(self, text: str, kind: str, details: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.details = details


def load_app(hello: dict[str, Any]) -> LoadedApp:
    """Import the application that HELLO names and let the first loader that knows it make it ready.

    Main thread of the executor (prefork: of the fork server).

    :raises LoadError: not found (kind "usage"), not an application ("usage"), or failed itself ("import").
    """
    directory = hello.get("workdir") or os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec: str = hello["app"]
    target = _import_target(spec)
    context = LoadContext(**hello["context"])
    loaders = [import_string(loader)() for loader in hello["loaders"]]
    for loader in loaders:
        app = loader.accepts(target)
        if app is not None:
            return _load(loader, app, context, spec)
    kinds = ", ".join(loader.name for loader in loaders) or "none"
    usual = type(getattr(target, "app", getattr(target, "celery", target)))
    raise LoadError(
        f"-A {spec}: there is no application in it, or more than one (found: {usual.__module__}.{usual.__qualname__}; "
        f"kinds of application known here: {kinds}); name it as module:attribute",
        "usage",
    )


def _load(loader: AppLoader, app: object, context: LoadContext, spec: str) -> LoadedApp:
    try:
        return loader.load(app, context)
    except Exception as error:  # the user's code or settings: told with its place
        raise LoadError(f"-A {spec}: {_describe(error)}", "import", traceback.format_exc()) from error


def _import_target(spec: str) -> Any:
    module, _, attribute = spec.partition(":")
    try:
        value = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise LoadError(
                f"-A {spec}: no module named {error.name!r} (looked in {os.getcwd()} and sys.path)", "usage"
            ) from error
        raise LoadError(f"-A {spec}: {_describe(error)}", "import", traceback.format_exc()) from error
    except BaseException as error:  # the user's module may raise anything, SystemExit too
        raise LoadError(f"-A {spec}: {_describe(error)}", "import", traceback.format_exc()) from error
    for part in attribute.split(".") if attribute else ():
        if not hasattr(value, part):
            raise LoadError(f"-A {spec}: module {module!r} has no attribute {attribute!r}", "usage")
        value = getattr(value, part)
    return value


def _describe(error: BaseException) -> str:
    """One line: what was raised, and where in the user's files."""
    place = ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    else:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if "importlib" not in frame.filename and frame.filename != __file__:
                place = f" ({frame.filename}:{frame.lineno})"
                break
    return f"{type(error).__name__}: {str(error)[:500]}{place}"


def loaded_frame(app: LoadedApp) -> bytes:
    """The LOADED frame: `AppInfo` as JSON."""
    return pack_json(Frame.LOADED, asdict(app.info))


def failed_frame(error: BaseException) -> bytes:
    """The FAILED frame, for the kernel to show."""
    if isinstance(error, LoadError):
        return pack_json(Frame.FAILED, {"text": str(error), "kind": error.kind, "details": error.details})
    details = "".join(traceback.format_exception(error))
    return pack_json(Frame.FAILED, {"text": _describe(error), "kind": "internal", "details": details})


def configure_logging(options: dict[str, Any]) -> None:
    """Give the loggers of the kernel and of the selected plugins (`loggers`) a handler. The root logger and the
    application's own are left alone."""
    handler: logging.Handler
    if options.get("file"):
        handler = logging.FileHandler(options["file"])
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(options["format"]))
    for name in options["loggers"]:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(options["level"])
        logger.propagate = False


def become_executor(channel: Channel, board: Board, runtime: Runtime, app: LoadedApp, hello: dict[str, Any]) -> str:
    """Serve until retired: run the hooks, report UP, run jobs. Main thread.

    :return: why it ended.
    """
    hooks = _hooks(hello["plugins"])
    executor = Executor(channel, board, runtime, app)
    try:
        app.setup(hello["node"], _wrapper(hooks))
        if hooks is not None:
            hooks.hook.kwx_init(executor=executor)
    except BaseException as error:
        channel.send(failed_frame(error))
        raise
    executor.start_minder()
    channel.send(pack_json(Frame.UP, {"pid": os.getpid()}))
    try:
        runtime.serve(executor)
    except ChannelClosed:
        executor.exit_reason = "the kernel process is gone"
    finally:
        executor.stop_minder()
    if hooks is not None:
        hooks.hook.kwx_exit(executor=executor, reason=executor.exit_reason)
    return executor.exit_reason


def _hooks(plugins: Sequence[str]) -> Any:
    if not plugins:
        return None  # pluggy is not imported for nothing: it would be paid in every child
    import pluggy

    from . import hookspecs_executor

    manager = pluggy.PluginManager(hookspecs_executor.PROJECT)
    manager.add_hookspecs(hookspecs_executor)
    for plugin in plugins:
        manager.register(import_string(plugin), plugin)
    manager.check_pending()
    return manager


def _wrapper(hooks: Any) -> Callable[[str, Call], Call]:
    if hooks is None:
        return lambda task, call: call

    def wrap(task: str, call: Call) -> Call:
        for implementation in reversed(hooks.hook.kwx_wrap_task.get_hookimpls()):  # first registered = outermost
            call = implementation.function(task=task, call=call) or call
        return call

    return wrap


def ignore_group_signals() -> None:
    """Signals for the whole process group are the kernel process's business: it tells executors what to do.

    A handler that does nothing, not SIG_IGN: ignored signals would stay ignored in programs that tasks start.
    """
    group = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in group:
        signal.signal(number, lambda *_: None)


def read_hello(channel: Channel) -> dict[str, Any]:
    """Wait for the first frame, HELLO. Reads no byte of what comes behind it: with a fork server's first FORK come
    descriptors, which a reader that does not ask for them would lose.

    :raises ChannelClosed: the kernel is gone.
    """
    length, _ = HEAD.unpack(_read_exactly(channel.sock, HEAD.size))
    hello: dict[str, Any] = json.loads(_read_exactly(channel.sock, length))
    return hello


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise ChannelClosed("end of file")
    return data


def main(channel: Channel, board: Board) -> int:
    """An exec'ed executor's whole life: HELLO, application, LOADED, serve. Main thread of the process."""
    hello = read_hello(channel)
    runtime: Runtime = import_string(hello["runtime"])()
    runtime.prepare()
    configure_logging(hello["log"])
    try:
        app = load_app(hello)
    except BaseException as error:
        channel.send(failed_frame(error))
        return 1
    channel.send(loaded_frame(app))
    become_executor(channel, board, runtime, app, hello)
    return 0


def die_with_parent() -> None:
    """Ask the system to kill this process when its parent's thread ends. Linux; elsewhere the end of the
    channel does it, which a task that holds the interpreter can delay."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)  # it died in between


def process_main() -> None:
    """Entry of an exec'ed executor: descriptors of channel and board and the number of slots are in argv."""
    ignore_group_signals()
    die_with_parent()
    channel_fd, board_fd, slots = map(int, sys.argv[1:4])
    code = 1
    try:
        code = main(Channel(socket.socket(fileno=channel_fd)), Board(board_fd, slots))
    except ChannelClosed:
        pass
    finally:
        flush_output()
        os._exit(code)  # threads that tasks left behind must not keep the process


def flush_output() -> None:
    """Write out what was printed, before a fork or the end of the process. That nobody can read it any more is no
    reason to fail, now or when the interpreter flushes for the last time (it would exit with 120)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (ValueError, AttributeError):  # a task closed it; or there is none
            pass
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
