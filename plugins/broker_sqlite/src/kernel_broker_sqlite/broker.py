"""The worker's side of the embedded broker. Runs in the kernel process.

Three connections, so that its threads do not wait for each other: fetch thread, settle thread, the rest.
What the tables mean is in `schema`; each step of a message is one transaction of `reserving`, `settling`
or `leases`, so a kill at any moment leaves every message in exactly one place.
"""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from kernel_result_sqlite.database import Database
from kernel_result_sqlite.failures import FileRefused, FileUnavailable
from kernel_result_sqlite.location import parse_url
from kernel_result_sqlite.watch import Watch
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable, ConfigError
from kernel_worker.types import BrokerCapability, DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement

from . import graveyard, reserving, settling
from .broadcast import Listener, say
from .envelope import read_envelope
from .leases import Lease
from .queues import bind, count, purge_some
from .schema import SCHEMA, append

LONGEST_SWEEP_S = 1.0
"""Between two looks for dead holders: their messages come back so long after their lease, at most."""


@contextmanager
def _kernel_errors() -> Iterator[None]:
    """Say what is wrong with the file in the kernel's terms."""
    try:
        yield
    except FileRefused as error:
        raise BrokerRefused(error.message, hint=error.hint) from error
    except FileUnavailable as error:
        raise BrokerUnavailable(error.message, hint=error.hint) from error


class SqliteBroker(Broker):
    """The embedded broker: one SQLite file, see `kernel_worker.Broker` for the contract.

    :raises ConfigError: the URL names no file.
    """

    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset(
        {
            BrokerCapability.DELAY,
            BrokerCapability.PRIORITY,
            BrokerCapability.LEASE,
            BrokerCapability.DEAD_LETTER,
            BrokerCapability.BROADCAST,
            BrokerCapability.ATTEMPTS,
            BrokerCapability.MARK,
            BrokerCapability.BATCH_FETCH,
        }
    )

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        try:
            self._location = parse_url(context.url)
        except ValueError as error:
            raise ConfigError(f"broker_url: {error}") from error
        gate = threading.Lock()
        self._fetching = Database(self._location, SCHEMA, gate)
        self._settling = Database(self._location, SCHEMA, gate)
        self._other = Database(self._location, SCHEMA, gate)
        self._databases = (self._fetching, self._settling, self._other)
        self._lease = Lease.of(context.holder, context.lease_s)
        self._queues = tuple(dict.fromkeys(queue.name for queue in context.queues))
        self._sweep_every_s = min(context.lease_s / 3, LONGEST_SWEEP_S)
        self._fetch_lock = threading.Lock()
        self._watch = Watch(self._location.path)
        self._interrupted = False
        self._connected = False
        self._turn = 0
        self._next_sweep = self._busy_at = 0.0  # time.monotonic()

    def connect(self) -> None:
        """Open the file, creating it if need be and allowed, and take out the lease."""
        if not self.context.may_create and not os.path.exists(self._location.path):
            raise BrokerUnavailable(
                f"there is no file {self._location.path}",
                hint="check the broker's URL; a worker or a client makes the file",
            )
        with _kernel_errors():
            self._disconnect()
            for database in self._databases:
                database.version()  # opens it
            self._settling.write(self._lease.renew)
        self._watch.close()
        self._watch = Watch(self._location.path, can_wake=True)
        self._busy_at = time.monotonic()
        self._next_sweep = 0.0
        self._connected = True

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Write the bindings down, for publishers that name an exchange.

        :raises BrokerRefused: an exchange is not direct.
        """
        with self._ready():
            self._other.write(lambda connection: bind(connection, queues))

    # -- fetching

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """Reserve up to `limit` deliveries; see the contract. While it waits it takes no CPU, see `watch`."""
        deadline = time.monotonic() + timeout
        looked = False
        with self._fetch_lock, self._ready():
            while not self._interrupted:
                self._sweep_if_it_is_time()
                seen: object = self._fetching.version()
                waiting, due = self._fetching.read(lambda connection: reserving.look(connection, self._queues))
                is_due = due is not None and due <= time.time()
                if waiting or is_due:
                    deliveries = self._reserve(max(0, limit), is_due)
                    if deliveries:
                        self._busy_at = time.monotonic()
                        return deliveries
                    seen = None  # another worker was faster, or all were too large: look again
                if looked:
                    now = time.monotonic()
                    self._watch.rest(now - self._busy_at, deadline - now)
                looked = True
                if not self._wait(seen, deadline, math.inf if due is None else due):
                    return []
            self._interrupted = False
            return []

    def interrupt(self) -> None:
        """Make a waiting `fetch`, or else the next one, return at once."""
        self._interrupted = True
        self._watch.wake()

    def _reserve(self, limit: int, is_due: bool) -> list[Delivery]:
        reservation = secrets.randbits(62)
        self._turn += 1
        turn = self._turn % max(1, len(self._queues))
        queues = self._queues[turn:] + self._queues[:turn]

        def operation(connection: sqlite3.Connection) -> tuple[int, list[reserving.Taken]]:
            holder = self._lease.holder(connection)
            if is_due:
                reserving.release_due(connection, time.time())
            largest = self.context.max_message_bytes
            return holder, reserving.reserve(connection, reserving.Order(queues, limit, holder, reservation, largest))

        holder, taken = self._fetching.write(operation)
        return [_delivery(each, holder, reservation) for each in taken]

    def _wait(self, seen: object, deadline: float, due: float) -> bool:
        """Wait for a reason to look again; False when the time is over."""
        while not self._interrupted:
            now = time.monotonic()
            left_s = min(deadline - now, self._next_sweep - now, due - time.time())
            if left_s <= 0:
                return now < deadline
            if self._fetching.version() != seen:
                return True
            self._watch.wait(now - self._busy_at, left_s)
        return True

    def _sweep_if_it_is_time(self) -> None:
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + self._sweep_every_s
            if self._fetching.read(self._lease.others_have_died):
                self._fetching.write(self._lease.sweep)

    # -- settling

    def settle(self, batch: Sequence[Settlement]) -> None:
        """Carry out the verdicts in one transaction: all or, with an error, none."""
        if batch:
            with self._ready():
                self._settling.write(lambda connection: settling.settle(connection, batch))

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        """Renew the holder's lease, which is that of all its deliveries; gives those that others took."""
        receipts = [delivery.receipt for delivery in held]

        def operation(connection: sqlite3.Connection) -> set[settling.Receipt]:
            self._lease.renew(connection)
            return settling.still_held(connection, receipts)

        with self._ready():
            kept = self._settling.write(operation)
        return [delivery for delivery in held if delivery.receipt not in kept]

    # -- the rest

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        """Append one message to a queue."""
        with self._ready():
            self._other.write(lambda connection: append(connection, queue, raw, priority, payload))

    def purge(self, queue: str) -> int:
        """Delete the waiting and parked messages of a queue, in several transactions; how many."""
        total = 0
        with self._ready():
            while deleted := self._other.write(lambda connection: purge_some(connection, queue)):
                total += deleted
        return total

    def size(self, queue: str) -> QueueInfo:
        """Count the messages of a queue, all four numbers of one moment."""
        with self._ready():
            return self._other.read(lambda connection: count(connection, queue))

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """The newest dead letters of a queue, newest first."""
        with self._ready():
            return self._other.read(lambda connection: graveyard.newest(connection, queue, limit))

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        """One dead letter by its id, or None."""
        with self._ready():
            return self._other.read(lambda connection: graveyard.find(connection, queue, id))

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Put dead letters back at the end of their queue, in several transactions; how many."""
        return self._exhume(queue, ids, replay=True)

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Delete dead letters for good, in several transactions; how many."""
        return self._exhume(queue, ids, replay=False)

    def _exhume(self, queue: str, ids: Sequence[str] | None, *, replay: bool) -> int:
        total = 0
        with self._ready():
            for page in self._pages_of_dead(queue) if ids is None else _cut(ids):
                total += self._other.write(partial(graveyard.exhume, queue=queue, ids=page, replay=replay))
        return total

    def _pages_of_dead(self, queue: str) -> Iterator[Sequence[str]]:
        """Ids of all that are dead now; each page must be gone before the next is asked for."""
        until = self._other.read(partial(graveyard.last, queue=queue))
        while page := self._other.read(partial(graveyard.oldest, queue=queue, until=until)):
            yield page

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        """Take from these queues from the next `fetch` on; see the contract."""
        self._queues = tuple(dict.fromkeys(queue.name for queue in queues))
        super().consume(queues)

    def broadcast(self, channel: str, body: bytes) -> None:
        """Tell all who listen on a channel. Nothing is kept for who does not listen."""
        with self._ready():
            self._other.write(lambda connection: say(connection, channel, body))

    def listen(self, channel: str) -> Listener:
        """Hear what is said on a channel from now on. The listener is the caller's to close."""
        with self._ready():
            return Listener(Database(self._location, SCHEMA), channel)

    def close(self) -> None:
        """Give back what is reserved but unsettled, end the lease, close the connections. Idempotent.

        Ends a waiting `fetch`, and waits for it.
        """
        connected, self._connected = self._connected, False
        self.interrupt()
        with self._fetch_lock:
            self._interrupted = False
            if connected and os.path.exists(self._location.path):  # a deleted file must not be made again
                try:
                    self._settling.write(self._lease.leave)
                except FileUnavailable:
                    pass  # the lease brings the messages back
            self._disconnect()
            self._watch.close()

    def _disconnect(self) -> None:
        for database in self._databases:
            database.close()

    @contextmanager
    def _ready(self) -> Iterator[None]:
        if not self._connected:
            raise BrokerUnavailable(f"{self._location.path} is not connected")
        with _kernel_errors():
            yield


def _cut(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), graveyard.EXHUMED_AT_ONCE):
        yield ids[start : start + graveyard.EXHUMED_AT_ONCE]


def _delivery(taken: reserving.Taken, holder: int, reservation: int) -> Delivery:
    headers, properties, error = read_envelope(taken.raw, body_apart=taken.payload is not None)
    return Delivery(
        taken.queue,
        taken.raw,
        headers,
        (taken.id, holder, reservation),
        properties,
        taken.attempts,
        taken.redelivered > 0,
        taken.payload,
        error,
        taken.redelivered == settling.RECOVERED,
        taken.returns,
    )
