"""The contracts of what is chosen by name: pool, runtime, broker, result backend, application loader,
control command. Each has a suite in `kernel_worker.testing` that any driver can be held against.

stevedore imports only the driver that was chosen; a driver's module is light and imports its heavy
library when it connects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from .errors import BrokerRefused
from .types import (
    AppInfo,
    BrokerCapability,
    DeadLetter,
    Delivery,
    Job,
    Outcome,
    PoolCapability,
    QueueInfo,
    QueueSpec,
    Settlement,
    StoredResult,
)

if TYPE_CHECKING:
    from .executor import Executor

API = 1
"""Version of these contracts. A driver states the one it was written for in its `api` attribute."""


# --------------------------------------------------------------------------- pools


@dataclass(frozen=True, slots=True)
class Layout:
    """How a pool spreads its slots.

    :param processes: executors to keep alive.
    :param slots: tasks one executor runs at once.
    :param inline: the one executor is the worker's own main thread; the loop runs beside it.
    """

    processes: int
    slots: int
    inline: bool = False


class Pool:
    """A pool, seen from the kernel process: declarative, and light to import.

    Built once per worker with its options (an instance of `Options`). The kernel's supervisor keeps
    the executors alive; a pool says how many there are, how they come into being and what they can do.
    """

    name: ClassVar[str]
    api: ClassVar[int] = API
    Options: ClassVar[type]
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset()
    runtime: ClassVar[str] = "kernel_worker.executor:BlockingRuntime"
    """Import string of the `Runtime`; imported in the executor only."""
    spawner: ClassVar[str] = "kernel_worker.spawn:ExecSpawner"
    """Import string of the `Spawner`: how executors come into being."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def layout(self, concurrency: int) -> Layout:
        """Processes and slots for `concurrency` tasks at once (at least 1).

        Called in the kernel process, before the first executor and again when the pool is resized.
        """
        return Layout(processes=concurrency, slots=1)


class Native(Protocol):
    """Thread primitives that no monkey-patching has replaced, for the executor's minder thread."""

    def start_thread(self, target: Callable[[], object]) -> None: ...
    def lock(self) -> Any: ...
    def poll(self, fds: Sequence[int], timeout: float) -> list[int]: ...


class Runtime(ABC):
    """How an executor process runs its slots.

    One slot (`reads_always` False): `serve` calls `executor.next()` and `executor.execute(job, 0)` in turn, on one
    thread; the minder thread reads frames while a task runs long.

    Many slots (`reads_always` True): `serve`, on the main thread, reads with `executor.receive()` whenever
    `executor.channel` is readable, whatever runs (`receive(wait=True)` where it has a thread for it). Afterwards, and in
    `look`, and whenever a slot becomes free: while there is a free slot and `executor.take()` gives a job, it has
    `executor.execute(job, slot)` called on a thread or greenlet of its own, with the number of a slot that runs nothing
    (0 ≤ slot < len(executor.slots)). Where jobs are awaited instead, `executor.begin(job, slot)`, the job, and
    `executor.end(job, slot, outcome)`. Once nothing is left to take for a moment it calls `executor.flush()`, which may
    do I/O and so must run where that is allowed. When `executor.retiring` is set, nothing waits and nothing runs:
    `executor.leave()`, and `serve` returns. While the result backend is away for long, `take` gives nothing; after a
    flush it may again.
    """

    reads_always: ClassVar[bool] = False
    """Whether `serve` reads frames while tasks run; the minder then does it only while they are not read."""
    run_coroutine: Callable[[Any], Any] | None = None
    """Becomes `LoadedApp.run_coroutine`."""

    @abstractmethod
    def prepare(self) -> None:
        """Runs first of all in an exec'ed executor, before the application is imported.

        The place for monkey-patching. Not called again in processes forked later.

        :raises LoadError: of `kernel_worker.loading`, kind "usage": what it needs is not installed.
        """

    @abstractmethod
    def native(self) -> Native:
        """Primitives for the minder thread that work whatever `prepare` has patched."""

    @abstractmethod
    def serve(self, executor: Executor) -> None:
        """Run jobs until there will be no more. Main thread of the executor.

        :raises ChannelClosed: the kernel is gone; the process then ends, and what it runs with it.
        """

    @abstractmethod
    def cancel(self, tag: int, error: BaseException) -> bool:
        """Raise `error` inside the running job `tag`, and in nothing else, even if it ends at this very moment.

        Called on whichever thread reads frames: the minder's or the one of `serve`. Must not wait for the task.

        Not in the middle of what an exception would break (`kernel_worker.interrupting.Aim`): there it waits.

        :return: whether it is or will be raised, as far as is known now; False when the job does not run here.
        """

    def insist(self) -> bool:
        """Try again to raise what had to wait. Minder thread: soon, then every millisecond while something waits.

        :return: whether something waits.
        """
        return False

    def around(self, run: Call) -> Call:
        """Called once with `LoadedApp.run`: what `execute` calls in its place, on the slot's thread or greenlet."""
        return run

    def soon(self, callback: Callable[[], object]) -> None:
        """Call `callback` where results can be stored and logs written, soon. Minder thread.

        The default calls it at once, which is right where nothing is monkey-patched and threads are all there is.
        """
        callback()

    def look(self) -> None:
        """The minder has read frames: there may be jobs to take, or the executor retires. By way of `soon`."""


# --------------------------------------------------------------------------- brokers


@dataclass(frozen=True, slots=True)
class BrokerContext:
    """What a broker driver is built with.

    :param url: the full URL, with credentials: never print it, see `kernel_worker.config.mask_url`.
    :param holder: unique name of this worker's incarnation (node name, pid and random part): leases
        are keyed by it, never by the node name alone.
    :param queues: queues to consume from, in order.
    :param lease_s: seconds after which the messages of a holder that stopped renewing come back.
    :param max_message_bytes: larger messages go to the dead letters without being transferred.
    :param options: `broker_transport_options`, Celery's names.
    :param may_create: whether a storage that does not exist, such as a file, may be made. Not by commands that look.
    """

    url: str
    holder: str = "test@localhost"
    queues: tuple[QueueSpec, ...] = (QueueSpec("celery"),)
    lease_s: float = 15.0
    max_message_bytes: int = 24 * 1024 * 1024
    options: Mapping[str, Any] = field(default_factory=dict)
    may_create: bool = True


class Broker(ABC):
    """A message broker, seen from the kernel process.

    Blocking code with deadlines. Three kinds of callers, each on its own thread: `fetch` only ever on
    the fetch thread; `settle` and `renew` only on the settle thread; everything else from any thread.
    They must not wait for each other, so fetch and settle use connections of their own.

    Every method raises `BrokerUnavailable` when the connection is gone (the kernel calls `connect`
    again, with back-off) and `BrokerRefused` when the broker said no.
    """

    api: ClassVar[int] = API
    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset()
    in_process: ClassVar[bool] = False
    """Whether the messages are in the worker's own process, where no other can reach them: only a pool that runs tasks
    there is let start with it."""

    def __init__(self, context: BrokerContext) -> None:
        self.context = context

    @abstractmethod
    def connect(self) -> None:
        """Open (or open again) what is needed, within a deadline of its own (about 5 s).

        Called on the fetch thread while no other call is under way, at first and after each loss.
        Afterwards `declare` is called.
        """

    @abstractmethod
    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make the queues and bindings exist; doing it twice changes nothing."""

    @abstractmethod
    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """Reserve up to `limit` deliveries, waiting at most `timeout` seconds for the first.

        Reserving is one atomic step on the server: a crash at any moment must not lose a message.
        Returns at once when at least one message is there; [] on time-out or after `interrupt()`.
        Also brings parked messages that are due, and messages of dead holders, back into play: these come with
        `recovered` set, and their attempts are not counted up (the kernel has them marked before it runs them).
        A message that is no envelope comes as a `Delivery` with `error` set.
        """

    @abstractmethod
    def settle(self, batch: Sequence[Settlement]) -> None:
        """Carry out the verdicts, in one round trip where possible, each atomically.

        A delivery that is no longer ours (lease lost) is skipped silently. Raises only when the
        outcome is unknown or nothing was done; the kernel then repeats the whole batch, so doing
        a settlement twice must be harmless.
        """

    @abstractmethod
    def renew(self, held: Sequence[Delivery]) -> Sequence[Delivery] | None:
        """Renew the lease of this holder and of all its deliveries. Every third of the lease, every 10 s at least; where
        there is no LEASE, after each connect as well, to ask what was lost with the connection.

        What others took while the lease was over stays theirs.

        :return: those of `held` that are no longer this holder's; None = the driver cannot tell. The kernel ends what
            runs of them, and neither stores nor settles its end. Where a driver cannot tell, the kernel takes all for
            lost that it held when a lease went by without a renewal.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a waiting `fetch` return early, and the next one return at once. Any thread."""

    @abstractmethod
    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        """Append one envelope to a queue, durably before it returns."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Delete the waiting and parked messages of a queue; in-flight and dead ones stay.

        :return: how many were deleted.
        """

    @abstractmethod
    def size(self, queue: str) -> QueueInfo:
        """Count the messages of a queue."""

    @abstractmethod
    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """The newest dead letters of a queue, newest first."""

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        """One dead letter by its id, or None. Any number of others may lie before it."""
        raise BrokerRefused(f"{type(self).__name__} keeps no dead letters")

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Put dead letters back at the end of their queue, as they came, with their attempts forgotten. Each is at
        any moment in one place; a crash may leave some of them dead, never both or none.

        :param ids: which; None = all of the queue.
        :return: how many were found and put back.
        """
        raise BrokerRefused(f"{type(self).__name__} keeps no dead letters")

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Delete dead letters for good; None = all of the queue. How many were deleted."""
        raise BrokerRefused(f"{type(self).__name__} keeps no dead letters")

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        """Take from these queues from the next `fetch` on, in this order; the kernel has declared them. What is
        held from others stays held. Loop thread; a waiting `fetch` is interrupted. A driver that keeps more of
        the queues than `context.queues` overrides this.
        """
        self.context = replace(self.context, queues=tuple(queues))
        self.interrupt()

    @abstractmethod
    def close(self) -> None:
        """Give back what is reserved but unsettled, drop the lease, close connections. Idempotent.

        Must not raise when the broker is away: the lease then brings the messages back.
        """


@runtime_checkable
class Publisher(Protocol):
    """Sends messages for the client side (`kernel_app`). Needs no worker: implementations do not
    import `kernel_worker`. Any thread; after a fork the child opens connections of its own.

    Built as `Publisher(url: str, options: Mapping)` with `broker_transport_options`.
    `message` is a `kernel_app.message.Message`: attributes queue, exchange, exchange_type, routing_key,
    priority, eta (unix time or None), headers, properties, body, content_type, content_encoding, and
    `envelope() -> bytes` giving kombu's virtual envelope.

    Raises the builtin `ConnectionError` when the broker cannot be reached.
    """

    def publish(self, message: Any) -> None: ...
    def publish_many(self, messages: Sequence[Any]) -> None: ...
    def close(self) -> None: ...


Letter = tuple[Mapping[str, Any], str, bytes]
"""A remote-control message: headers, content type, body."""


@runtime_checkable
class Mailbox(Protocol):
    """Remote control's post on one connection of its own: broadcasts to all workers, and replies to who asked. On the
    wire it is kombu's pidbox. Entry-point group `kernel_worker.mailboxes`, by URL scheme. Needs no worker:
    implementations do not import `kernel_worker`. One thread, but for `interrupt`.

    Built as `Mailbox(url: str, options: Mapping, name: str)` with `broker_transport_options` and `control_exchange`
    (default "celery"); opens nothing. Raises the builtin `ConnectionError` when the broker cannot be reached; after
    that, `close` and begin again.
    """

    def listen(self, node: str) -> None:
        """Connect, and hear from now on what is broadcast; `node` names the queue where there is one."""

    def expect(self, box: str) -> None:
        """Connect, and hear from now on what is replied to `box`. Nothing of it is left behind after a minute, even if
        this process is killed."""

    def receive(self, timeout: float) -> list[Letter]:
        """What came, waiting at most `timeout` seconds for the first; [] on time-out or after `interrupt`."""

    def broadcast(self, headers: Mapping[str, Any], body: bytes) -> int | None:
        """Tell all workers; JSON. Connects when it must.

        :return: how many hear it, where the broker says so; None where it does not.
        """

    def roster(self) -> list[str]:
        """Names of the nodes that hold a lease now, for telling who did not answer; [] where the broker knows none."""

    def reply(self, letters: Sequence[tuple[str, Mapping[str, Any], bytes]]) -> None:
        """Send (box, headers, body) each; JSON. To a box that nobody has any more it is dropped."""

    def interrupt(self) -> None:
        """Make a waiting `receive`, or the next one, return at once. Any thread."""

    def close(self) -> None:
        """Close the connection and forget the box. Idempotent; never raises."""


# --------------------------------------------------------------------------- results


@runtime_checkable
class RevokeStore(Protocol):
    """Revokes that the broker keeps, so that they hold for workers that start later. Entry-point group
    `kernel_worker.revokes`, by URL scheme. Needs no worker: implementations do not import `kernel_worker`. One thread.

    Built as `RevokeStore(url: str, options: Mapping)` with `broker_transport_options`; opens nothing. Raises the builtin
    `ConnectionError` when the broker is away or refuses. Keeps the newest 50,000 ids; those that have expired for a
    year, as a parked task may be due later than its revoke ends.
    """

    takes_copies: bool
    """Whether workers write down what they hear as well: where the same id twice is one entry."""

    def add(self, ids: Iterable[str], until: float) -> None:
        """Keep ids until that unix time."""

    def read(self) -> list[tuple[str, float]]:
        """All that are kept, oldest first."""

    def close(self) -> None:
        """Close the connection. Idempotent; it is opened again when it is needed."""


@runtime_checkable
class ResultBackend(Protocol):
    """Stores task states (executor) and reads them (client). Needs no worker: implementations do not
    import `kernel_worker`. Any thread; after a fork the child opens connections of its own.

    Built as `ResultBackend(url: str, settings: Mapping)` with the application's lowercase settings.
    Raises the builtin `ConnectionError` when the store cannot be reached.
    """

    def store(self, results: Sequence[StoredResult]) -> None:
        """Store all, in one round trip, and tell those who wait. Idempotent. Executor, before the outcome is reported.

        A SUCCESS that is stored already is never replaced by another state, and no final state (SUCCESS, FAILURE,
        REVOKED) by a RETRY: the next try, on another slot, may end before the try that asked for it."""

    def fetch(self, task_id: str) -> bytes | None:
        """The stored task meta (JSON), or None."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        """Wait until a meta for which `is_final(meta)` holds is stored; None after `timeout` seconds.

        By push where the store can; leaves no subscription behind, whatever happens."""

    def forget(self, task_id: str) -> None: ...
    def close(self) -> None: ...


# --------------------------------------------------------------------------- applications


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a loader is given: settings that win over the application's own (from the command line,
    environment and file; Celery's lowercase names, e.g. broker_url, result_backend, task_default_queue),
    and where the client-side drivers are, so that no executor scans entry points.

    :param publishers: URL scheme to import string "module:attr".
    :param results: the same for result backends.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    publishers: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)


Call = Callable[[Job], Outcome]
"""Runs one job to its end: decodes the body, runs the task, encodes the result into
`Outcome.result`. Raises nothing that the user's task raised; what it raises is a bug."""


class LoadedApp(ABC):
    """An application, imported in an executor (or its fork server)."""

    info: AppInfo
    soft_limit_error: type[BaseException]
    hard_limit_error: type[BaseException]
    cancel_error: type[BaseException] = SystemExit
    """Raised inside a task that is terminated by remote control; no failure of the task. Called with a text."""
    run_coroutine: Callable[[Any], Any] | None = None
    """Runs a coroutine to its end on the slot that calls it, where the runtime has its own way. Set before `setup`."""
    verbose: bool = False
    """Whether outcomes shall carry `shown` and `traceback`. Set by the executor, at any time."""
    claim: Callable[[int], None] = staticmethod(lambda tag: None)
    """To be called with a job's tag, on its slot, before messages that follow from its end are published. Returns when
    the worker is known to hold the job's message, which takes as long as an outage of the broker; raises
    `cancel_error` when another worker has it. Set by the executor, before `setup`."""

    @abstractmethod
    def setup(self, node: str, wrap: Callable[[str, Call], Call]) -> None:
        """Once per executor process, after any fork, before the first job: compile one `Call` per task.

        :param node: the worker's node name, for `task.request.hostname`.
        :param wrap: folds `kwx_wrap_task` hooks around a call; to be applied to each task's call.
        """

    @abstractmethod
    def run(self, job: Job) -> Outcome:
        """Run one job. On the slot that took it."""

    def read(self, job: Job) -> Job:
        """What `run` will be called with instead of this job, which waits: the same one, or one of a kind of its own that
        holds what is in the message. Between tasks, on their thread, for several jobs in turn.

        Nothing shows which job is read should the process die of it. So it runs no code of the user's, and reads only what
        can do no harm, however it was made; it raises nothing, and leaves to `run` what is wrong with a message.
        """
        return job

    def run_async(self, job: Job) -> Coroutine[Any, Any, Outcome] | None:
        """The run of one job as a coroutine, not begun yet; None when it is to be run by `run`, on a thread.

        Called by runtimes that have an event loop, on its thread, before `Executor.begin`. Must neither wait nor raise; the
        coroutine raises nothing that the user's task raised.
        """
        return None

    def teardown(self, reason: str) -> None:
        """The process is about to end in order: no job will come. The counterpart of `setup`."""

    def notify(self, event: str) -> None:
        """Something happened to the worker as a whole, told to one of its executors: "worker_ready", when it is up, or
        "worker_shutdown", when it begins to stop. On the thread that reads frames: it should not take long.
        """

    def command(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Answer a remote-control command that `info.commands` describes; the reply is JSON. On a thread of its own,
        beside tasks that run; may be called several times at once. Raises ValueError for a wrong argument.
        """
        raise LookupError(f"the application has no command {name!r}")

    @abstractmethod
    def conclude(self, job: Job, kind: int, error: str) -> StoredResult | None:
        """The result to store for a job that the kernel ended without running it to its end: LOST,
        TIMEOUT, EXPIRED, REVOKED, UNKNOWN, INVALID (`kind` is an `OutcomeKind`). None = nothing to store.
        """

    @property
    @abstractmethod
    def results(self) -> ResultBackend | None:
        """The result backend of the application, opened at first use; None if it has none."""


class AppLoader(ABC):
    """Turns an imported object into a `LoadedApp`. Chosen by asking each selected loader in turn."""

    name: ClassVar[str]
    api: ClassVar[int] = API

    @abstractmethod
    def accepts(self, target: object) -> object | None:
        """The application in `target`: itself, or found in it when it is a module. None = not mine."""

    @abstractmethod
    def load(self, app: object, context: LoadContext) -> LoadedApp:
        """Make the application ready: apply overrides, import its `imports` and `include` modules."""


# --------------------------------------------------------------------------- control


class Permission(Enum):
    """What a control command may do; `kw run --control` says up to which level commands are obeyed."""

    READ = "read"
    OPERATE = "operate"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class ControlCommand:
    """One remote-control command.

    :param handler: called on the loop thread as `handler(context, **arguments)`; returns a JSON-able
        reply. Must not block. Raises ValueError for a wrong argument.
    :param arguments: name to type; unknown or mistyped arguments are refused before the handler runs.
    :param deadline_s: a handler that takes longer is reported in the log.
    :param variadic: the argument that takes, as a list, all words of a command line from its place on.
    """

    name: str
    handler: Callable[..., Any]
    permission: Permission = Permission.READ
    arguments: Mapping[str, type] = field(default_factory=dict)
    help: str = ""
    deadline_s: float = 1.0
    aliases: tuple[str, ...] = ()
    variadic: str = ""
