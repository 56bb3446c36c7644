"""The worker's side of `filesystem://`. Runs in the kernel process; no thread waits for another."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable, ConfigError
from kernel_worker.types import BrokerCapability, DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement, Verdict

from ..envelope import read_envelope
from ..refusing import refuse_what_cannot_be
from . import dead, exchanges
from .folders import Folders, append, move, names_in
from .lease import Lease, name_of
from .names import FRESH, RECOVERED, SUFFIX, Name, is_queue_name, parse
from .parking import parked, place, release_due
from .waiting import Waiting

LONGEST_SWEEP_S = 1.0
"""Between two looks for dead holders: their messages come back so long after their lease, at most."""
DUE_EVERY_S = 0.2
"""Between two looks for parked messages that are due."""
PAUSES_S = (0.002, 0.05)
"""Between two looks into an empty folder: just after a message came, and at last."""
BATCH_BYTES = 64 * 1024 * 1024
WRITING_S = 5.0
"""An empty file this young is one that a peer is about to write: kombu opens it under its final name."""
DRAFT_S = 3600.0
"""A draft this old is left over from a process that was killed while it wrote."""


class _Held:
    """A receipt: where a reserved message lies. No two deliveries ever have the same place."""

    __slots__ = ("is_settled", "name", "path")

    def __init__(self, path: str, name: Name) -> None:
        self.path = path
        self.name = name
        self.is_settled = False


class FilesystemBroker(Broker):
    """Messages as files in a folder that Celery and kombu peers share; see `kernel_worker.Broker` for the contract.

    :raises ConfigError: the URL is wrong, or a queue cannot be part of a file name.
    """

    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset(
        {
            BrokerCapability.DELAY,
            BrokerCapability.LEASE,
            BrokerCapability.DEAD_LETTER,
            BrokerCapability.ATTEMPTS,
            BrokerCapability.MARK,
            BrokerCapability.BATCH_FETCH,
        }
    )

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        try:
            self._folders = Folders.of(context.url, context.options)
        except ValueError as error:
            raise ConfigError(f"broker_url: {error}") from error
        refuse_what_cannot_be("filesystem", context.queues, self.capabilities, exchanges.TYPES)
        for queue in context.queues:
            if not is_queue_name(queue.name):
                raise ConfigError(f"queue {queue.name!r} cannot be part of a file name", hint="leave '/' out of it")
        self._lease = Lease(self._folders, context.holder, context.lease_s)
        self._waiting = self._look_for(context.queues)
        self._serials = itertools.count(1)
        self._token = secrets.token_hex(2)
        self._fetch_lock = threading.Lock()
        self._wake = threading.Event()
        self._connected = False
        self._sweep_at = self._due_at = self._busy_at = 0.0  # time.monotonic()

    def connect(self) -> None:
        """Make the folders if need be, and take out the lease."""
        with self._kernel_errors():
            for folder in (self._folders.incoming, self._folders.held, self._folders.parked):
                os.makedirs(folder, exist_ok=True)
            drafts = self._folders.private("new")
            for name in names_in(drafts):
                draft = Path(drafts, name)
                if draft.exists() and time.time() - draft.stat().st_mtime > DRAFT_S:
                    draft.unlink(missing_ok=True)
            self._lease.renew()
        self._waiting.forget()
        self._sweep_at = self._due_at = 0.0
        self._connected = True

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Write the bindings down where kombu's peers look for them.

        :raises BrokerRefused: an exchange is of another type than direct, topic and fanout, or has an impossible name.
        """
        with self._ready():
            for queue in queues:
                if queue.exchange_type not in exchanges.TYPES:
                    raise BrokerRefused(
                        f"exchange {queue.exchange!r} is of type {queue.exchange_type!r}: files have "
                        f"{', '.join(exchanges.TYPES)}"
                    )
                try:
                    exchanges.bind(
                        self._folders.control,
                        queue.exchange or queue.name,
                        queue.exchange_type,
                        queue.routing_key or queue.name,
                        queue.name,
                    )
                except LookupError as error:
                    if queue.exchange:
                        raise BrokerRefused(str(error)) from error
                    # Its own exchange, which nobody need name: the anonymous one leads to it.

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        """Take from these queues from the next `fetch` on."""
        # Without the lock: fetches that follow each other hold it nearly always.
        self._waiting = self._look_for(queues)
        super().consume(queues)

    def _look_for(self, queues: Sequence[QueueSpec]) -> Waiting:
        return Waiting(self._folders.incoming, tuple(dict.fromkeys(queue.name for queue in queues)))

    # -- fetching

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """Reserve up to `limit` deliveries; see the contract. Waiting costs one `stat` per look."""
        deadline = time.monotonic() + timeout
        with self._fetch_lock, self._ready():
            while not self._wake.is_set():
                self._bring_back()
                if got := self._take(limit):
                    self._busy_at = time.monotonic()
                    return got
                now = time.monotonic()
                if now >= deadline:
                    return []
                shortest, longest = PAUSES_S
                self._wake.wait(min(deadline - now, max(shortest, min(longest, (now - self._busy_at) / 10))))
            self._wake.clear()
            return []

    def interrupt(self) -> None:
        """Make a waiting `fetch`, or else the next one, return at once."""
        self._wake.set()

    def _bring_back(self) -> None:
        """What is due, and what dead holders left."""
        now = time.monotonic()
        count = 0
        if now >= self._due_at:
            self._due_at = now + DUE_EVERY_S
            count += release_due(self._folders)
        if now >= self._sweep_at:
            self._sweep_at = now + min(self.context.lease_s / 3, LONGEST_SWEEP_S)
            count += self._lease.observe()
        if count:
            self._waiting.forget()

    def _take(self, limit: int) -> list[Delivery]:
        """Try what waits until there is enough. A round in which all of it was gone, or is still being written, is the
        last: whoever is faster than we shall not be raced in circles."""
        got: list[Delivery] = []
        size = 0
        while len(got) < limit and size < BATCH_BYTES:
            before = len(got)
            for filename in self._waiting.take(limit - before):
                if size >= BATCH_BYTES:
                    self._waiting.forget()  # what is not tried is found again
                    break
                delivery = self._reserve(filename)
                if delivery is not None:
                    size += len(delivery.raw)
                    got.append(delivery)
            if len(got) == before:
                break
        return got

    def _reserve(self, filename: str) -> Delivery | None:
        """Take one message into our folder; None when it is gone, is not written yet, or was too large."""
        name = parse(filename)
        if name is None:
            return None
        held = _Held(os.path.join(self._lease.folder, f"{self._token}{next(self._serials)}~{filename}"), name)
        try:
            os.rename(os.path.join(self._folders.incoming, filename), held.path)
        except FileNotFoundError:
            if not os.path.isdir(self._lease.folder):  # we were given up for dead
                self._lease.renew()
                self._waiting.forget()
            return None
        raw = self._read(held)
        if raw is None:
            return None
        headers, properties, error = read_envelope(raw)
        return Delivery(
            name.queue,
            raw,
            headers,
            held,
            properties,
            attempts=name.attempts,
            redelivered=name.state != FRESH,
            error=error,
            recovered=name.state == RECOVERED,
            returns=name.returns,
        )

    def _read(self, held: _Held) -> bytes | None:
        try:
            with open(held.path, "rb", buffering=0) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a peer locks it while it writes
                    status = os.fstat(file.fileno())
                    is_whole = status.st_size > 0 or time.time() - status.st_mtime > WRITING_S
                except BlockingIOError:
                    is_whole = False
                if not is_whole:
                    move(held.path, os.path.join(self._folders.incoming, str(held.name)))
                    self._waiting.forget()
                    return None
                if status.st_size > self.context.max_message_bytes:
                    reason = (
                        f"too large: {status.st_size} bytes, at most {self.context.max_message_bytes} are delivered"
                    )
                    dead.bury(self._folders, held.path, held.name, reason, count=False)
                    return None
                return file.read()
        except FileNotFoundError:  # we were given up for dead between the two steps
            return None

    # -- settling

    def settle(self, batch: Sequence[Settlement]) -> None:
        """Carry out the verdicts, one rename each. What was lost to another holder is not there any more."""
        with self._ready():
            for each in batch:
                self._settle(each, each.delivery.receipt)
                each.delivery.receipt.is_settled |= each.verdict is not Verdict.MARK

    def _settle(self, each: Settlement, held: _Held) -> None:
        name, verdict = held.name, each.verdict
        if verdict is Verdict.ACK:
            try:
                os.unlink(held.path)
            except FileNotFoundError:
                pass
        elif verdict is Verdict.REQUEUE:
            if move(held.path, os.path.join(self._folders.incoming, str(name.returned(count=each.count)))):
                self._waiting.forget()
        elif verdict is Verdict.DELAY:
            move(held.path, place(self._folders, name.delayed(count=each.count), each.until))
        elif verdict is Verdict.DEAD:
            dead.bury(self._folders, held.path, name, each.reason, count=each.count)
        else:
            self._mark(held)

    @staticmethod
    def _mark(held: _Held) -> None:
        marked = held.name.marked()
        serial = os.path.basename(held.path).partition("~")[0]
        path = os.path.join(os.path.dirname(held.path), f"{serial}~{marked}")
        try:
            os.rename(held.path, path)
        except FileNotFoundError:
            return
        held.path, held.name = path, marked

    def renew(self, held: Sequence[Delivery]) -> Sequence[Delivery]:
        """Renew the holder's lease, which is that of all its deliveries; those that others have taken."""
        with self._ready():
            self._lease.renew()
            # What was acknowledged when it was started is gone, too, and still ours.
            return [each for each in held if not each.receipt.is_settled and not os.path.lexists(each.receipt.path)]

    # -- the rest

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        """Append one message to a queue; a body that is kept apart has no place in a file."""
        if payload is not None:
            raise BrokerRefused("a message in a file has its body in the envelope")
        with self._ready():
            try:
                append(self._folders.incoming, queue, raw)
            except LookupError as error:
                raise BrokerRefused(str(error)) from error

    def purge(self, queue: str) -> int:
        """Delete the waiting and parked messages of a queue, one by one; how many."""
        count = 0
        with self._ready():
            waiting = [os.path.join(self._folders.incoming, name) for name in self._waiting_in(queue)]
            for path in (*waiting, *parked(self._folders, queue)):
                try:
                    os.unlink(path)
                    count += 1
                except FileNotFoundError:
                    pass  # another took it
        return count

    def size(self, queue: str) -> QueueInfo:
        """Count the messages of a queue, whoever holds them."""
        with self._ready():
            held = (name_of(held) for holder in names_in(self._folders.held) for held in self._held_by(holder))
            return QueueInfo(
                queue,
                waiting=sum(1 for _ in self._waiting_in(queue)),
                in_flight=sum(1 for name in held if name is not None and name.queue == queue),
                parked=len(parked(self._folders, queue)),
                dead=len(dead.ids(self._folders, queue)),
            )

    def _waiting_in(self, queue: str) -> Iterator[str]:
        tail = f"{queue}{SUFFIX}"
        with os.scandir(self._folders.incoming) as entries:
            yield from (entry.name for entry in entries if entry.name.partition(".")[2] == tail)

    def _held_by(self, holder: str) -> list[str]:
        return names_in(os.path.join(self._folders.held, holder))

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """The newest dead letters of a queue, newest first."""
        with self._ready():
            newest = reversed(dead.ids(self._folders, queue)[-limit:] if limit > 0 else [])
            found = (dead.read(self._folders, queue, id) for id in newest)
            return [letter for letter in found if letter is not None]

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        """One dead letter by its id."""
        with self._ready():
            return dead.read(self._folders, queue, id)

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Put dead letters back at the end of their queue, one rename each."""
        with self._ready():
            return dead.replay(self._folders, queue, ids)

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Delete dead letters."""
        with self._ready():
            return dead.drop(self._folders, queue, ids)

    def close(self) -> None:
        """Give back what is reserved but unsettled, end the lease. Idempotent; waits for a `fetch` to end."""
        connected, self._connected = self._connected, False
        self.interrupt()
        with self._fetch_lock:
            self._wake.clear()
            if connected:
                try:
                    self._lease.leave()
                except OSError:
                    pass  # the lease brings the messages back

    @contextmanager
    def _ready(self) -> Iterator[None]:
        if not self._connected:
            raise BrokerUnavailable(f"{self._folders.incoming} is not connected")
        with self._kernel_errors():
            yield

    @contextmanager
    def _kernel_errors(self) -> Iterator[None]:
        """Say what is wrong with the folder in the kernel's terms."""
        try:
            yield
        except PermissionError as error:
            raise BrokerRefused(f"{error.filename or self._folders.incoming}: {error.strerror}") from error
        except OSError as error:
            raise BrokerUnavailable(f"{error.filename or self._folders.incoming}: {error.strerror}") from error
