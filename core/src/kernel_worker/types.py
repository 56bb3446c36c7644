"""What flows through the kernel: deliveries, requests, outcomes, settlements, jobs.

Imports nothing of the kernel. Objects made once per message use `slots` and are not frozen:
freezing makes creation four times as expensive (measured, docs/adr/0003).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any


class PoolCapability(Enum):
    """What a pool can do. Asking a pool for what it does not declare is refused at start."""

    SOFT_LIMIT = "soft_limit"  # raises SoftTimeLimitExceeded inside the task
    HARD_LIMIT = "hard_limit"  # ends a task that ignores everything else, by replacing its process
    CANCEL = "cancel"  # raises an exception inside one running task
    SEVERAL_SLOTS = "several_slots"  # concurrency above one
    REPLACE = "replace"  # executors can be replaced while the worker runs


class BrokerCapability(Enum):
    """What a broker driver can do, beside reserving and settling."""

    DELAY = "delay"  # park a message until a time (Verdict.DELAY); else the kernel holds it
    PRIORITY = "priority"  # hands out by the message's priority
    LEASE = "lease"  # messages of a dead holder come back after the lease
    DEAD_LETTER = "dead_letter"  # keeps dead messages, byte-identical, with the reason
    BROADCAST = "broadcast"  # fan-out to every worker
    ATTEMPTS = "attempts"  # counts deliveries that ended in a lost executor
    MARK = "mark"  # counts a recovered delivery in place, before it is run again (Verdict.MARK)
    BATCH_FETCH = "batch_fetch"  # reserves many messages in one round trip


@dataclass(slots=True)
class Delivery:
    """One hand-over of a message by the broker.

    `raw` is kombu's virtual envelope, a JSON object with the keys body (base64 text),
    content-type, content-encoding, headers and properties. A broker whose wire format keeps the
    body apart (AMQP) builds `raw` without a body and puts the bytes into `payload`.
    The kernel reads `headers` and never the body; `raw` and `payload` go to an executor untouched.

    `recovered`: its last holder died, or lost the lease, without having accounted for it, so it may have been running.
    Set when the broker takes it from such a holder, which counts no attempt. Kept when it is given back without being
    counted (REQUEUE, DELAY, `close`), for then nothing more is known of it. Ended by MARK, and by a settlement with
    `count`: from then on `attempts` tells. Where the broker cannot keep it (no MARK), it may be lost when given back.
    """

    queue: str
    raw: bytes
    headers: Mapping[str, Any]  # {} for protocol 1, whose task name lies in the body
    receipt: Any  # what the driver needs to settle; opaque to the kernel
    properties: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0  # earlier deliveries that were counted: ended in a lost executor, or marked
    redelivered: bool = False
    payload: bytes | None = None
    error: str | None = None  # set by the driver when `raw` is no envelope: goes to the dead letters
    recovered: bool = False  # its last holder died with it: it may have been running
    returns: int = 0  # how often it was delayed with `Settlement.count`: who had it did not know its task


class OutcomeKind(IntEnum):
    """How the run of one request ended. The numbers travel on the wire between the processes."""

    SUCCESS = 0
    FAILURE = 1
    RETRY = 2  # a new message for the same id was published
    IGNORE = 3  # the task raised Ignore
    REJECT = 4  # the task raised Reject, see `requeue`
    INVALID = 5  # the message cannot be run: undecodable, not accepted, malformed
    DEFER = 6  # not due yet, see `until` (protocol 1: only the executor can read the eta)
    EXPIRED = 7  # its expiry had passed
    REVOKED = 8
    RETURNED = 9  # never started; the executor gave it back
    LOST = 10  # by the supervisor: the executor died while it ran; by the executor: it had no memory left
    TIMEOUT = 11  # hard time limit
    CANCELLED = 12  # by shutdown: put back, no attempt counted
    UNKNOWN = 13  # no such task in the application


@dataclass(slots=True)
class Outcome:
    """What an executor (or the supervisor) says of one request. Never holds a user's object."""

    kind: OutcomeKind
    runtime: float = 0.0  # seconds in the task's body
    error: str = ""  # one line, already safe to print
    requeue: bool = False  # REJECT only
    until: float = 0.0  # DEFER only: unix time
    result: StoredResult | None = None  # executor side only: to be stored before the outcome is reported
    shown: str = ""  # a short repr of what was returned or raised; only when somebody listens (LoadedApp.verbose)
    traceback: str = ""  # FAILURE, RETRY: only when somebody listens


@dataclass(slots=True)
class StoredResult:
    """One state of one task for a result backend.

    `payload` is Celery's task meta as JSON bytes (redis-layout: status, result, traceback,
    children, date_done, task_id); `expires` the seconds to keep it, None for ever.
    `reply_to` and `correlation_id` are those of the task's message, for backends that answer the sender.
    """

    task_id: str
    state: str
    payload: bytes
    expires: float | None = None
    reply_to: str = ""
    correlation_id: str = ""


class Verdict(Enum):
    """What the broker shall do with a delivery."""

    ACK = "ack"  # finished: remove it
    REQUEUE = "requeue"  # back to the front of its queue
    DELAY = "delay"  # park it until `Settlement.until`
    DEAD = "dead"  # to the dead letters of its queue, with the reason
    MARK = "mark"  # stays reserved; the delivery before is counted for good, `recovered` ends (BrokerCapability.MARK)


@dataclass(slots=True)
class Settlement:
    """The end of one delivery, or its mark. Settling one that is no longer ours must be a no-op.

    A mark counts the delivery before it, whose holder died; `count` the one that it settles. Marked twice is counted once.
    DELAY with `count` says that nobody here knows its task: it counts in `returns`, and leaves `attempts` and
    `recovered` alone. A driver that cannot keep a second number ignores it: then each worker counts for itself.
    """

    delivery: Delivery
    verdict: Verdict
    reason: str = ""  # DEAD: shown to people
    until: float = 0.0  # DELAY: unix time of the earliest next delivery
    count: bool = False  # REQUEUE, DEAD: an attempt, e.g. as it ended in a lost executor; DELAY: one of `returns`


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """How many messages a queue holds. Counts are of one moment and not transactional."""

    name: str
    waiting: int
    in_flight: int = 0
    parked: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that will not be run again, kept as it came."""

    id: str
    queue: str
    raw: bytes
    reason: str
    died_at: float  # unix time
    attempts: int = 0
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue to consume from and its binding, with Celery's defaults."""

    name: str
    exchange: str = ""  # "" means: an exchange named like the queue
    exchange_type: str = "direct"
    routing_key: str = ""  # "" means: the queue's name
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What the kernel knows of a task, without importing it."""

    name: str
    acks_late: bool = True
    time_limit: float | None = None  # seconds, hard
    soft_time_limit: float | None = None  # seconds
    rate_limit: str | None = None
    reject_on_worker_lost: bool | None = None
    acks_on_failure: bool = True
    acks_on_timeout: bool = True


@dataclass(frozen=True, slots=True)
class AppInfo:
    """What an executor reports of the application it loaded. Travels as JSON."""

    name: str
    kind: str  # name of the loader: native, celery
    tasks: Mapping[str, TaskInfo] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # explicitly set ones, Celery's names
    queues: tuple[QueueSpec, ...] = ()
    default_queue: str = "celery"
    warnings: tuple[str, ...] = ()
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Remote-control commands of the application: permission, arguments (name to name of type), variadic, help."""


@dataclass(slots=True, eq=False)
class Job:
    """One RUN frame, in the executor."""

    tag: int
    raw: bytes
    payload: bytes | None
    queue: str
    attempts: int
    redelivered: bool
    hard: float  # seconds, 0 = none
    soft: float  # seconds, 0 = none
    conclude: OutcomeKind | None = None  # store this end, with `text`, instead of running the task
    text: str = ""
