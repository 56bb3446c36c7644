"""The worker's side of any kombu transport, and of `memory://`. Runs in the kernel process.

kombu's channels are not made for several threads: each of their calls has the lock, and no call is long unless the
transport itself waits for its server.

Giving back is: publish a copy, then acknowledge. So it needs nothing of the connection that the message came by, the
number of attempts can be counted in a header, and a crash between the two doubles the message instead of losing it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable, ConfigError
from kernel_worker.types import BrokerCapability, DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement, Verdict

from .deadqueue import DeadQueue
from .envelope import Parts, read_envelope
from .kombu_message import ATTEMPTS, RETURNED, join_envelope, number, split_envelope
from .refusing import refuse_what_cannot_be
from .schemes import REMOVED, SCHEMES, missing_library, scheme_of

log = logging.getLogger("kernel_worker.broker.kombu")

CONNECT_S = 4.0
SHORTEST_PAUSE_S = 0.005
FETCH_S = 0.5
"""Longest time to go on collecting a batch: transports hand out one message per call."""


class Receipt:
    """A delivery that is not settled: kombu's message, the queue and what was counted before."""

    __slots__ = ("attempts", "channel", "is_settled", "message", "queue", "raw")

    def __init__(self, channel: Any, message: Any, queue: str, raw: bytes, attempts: int) -> None:
        self.channel = channel
        self.message = message
        self.queue = queue
        self.raw = raw
        self.attempts = attempts
        self.is_settled = False


class KombuBroker(Broker):
    """Any transport of kombu; see `kernel_worker.Broker` for the contract, and the README for what is missing.

    :raises ConfigError: the library of the transport is not installed, or a queue asks for what it cannot do.
    """

    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset(
        {BrokerCapability.ATTEMPTS, BrokerCapability.DEAD_LETTER}
    )
    exchange_types: ClassVar[tuple[str, ...]] = ("direct", "topic")
    longest_pause_s: ClassVar[float] = 1.0

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        name = scheme_of(context.url)
        self._scheme = SCHEMES.get(name)
        if self._scheme is None:
            raise ConfigError(
                f"{name}:// is none of kombu's transports that are supported: {', '.join(sorted(SCHEMES))}"
            )
        if missing_library(self._scheme):
            raise ConfigError(
                f"{name}:// needs the library {self._scheme.module.partition('.')[0]}, which is not installed",
                hint=f"pip install '{self._scheme.install}'",
            )
        refuse_what_cannot_be(name, context.queues, self.capabilities, self.exchange_types)
        pause_s = context.options.get("polling_interval")
        self._pause_s = self.longest_pause_s if pause_s is None else max(SHORTEST_PAUSE_S, float(pause_s))
        self._lock = threading.RLock()
        self._fetch_lock = threading.Lock()
        self._wake = threading.Event()
        self._connection: Any = None
        self._channel: Any = None
        self._errors: tuple[type[BaseException], ...] = (OSError,)
        self._held: dict[int, Receipt] = {}
        self._turn = 0
        self._busy_at = 0.0
        self._is_broken = self._warned = False

    def connect(self) -> None:
        """Open a connection; a good one is kept, for what is unacknowledged belongs to it."""
        with self._lock:
            if self._connection is not None and not self._is_broken:
                return
            self._disconnect()
            from kombu.connection import Connection  # not from kombu: that is no module for long, and threads notice

            connection = Connection(self.context.url, transport_options=dict(self.context.options))
            try:
                self._errors = (OSError, *connection.connection_errors, *connection.channel_errors)
                connection.connect_timeout = CONNECT_S
                connection.connect()
                channel = connection.channel()
                channel.do_restore = False  # we give back ourselves; kombu would do it a second time
            except ImportError as error:
                raise BrokerRefused(f"kombu's transport cannot be imported: {error}") from error
            except self._errors as error:
                raise BrokerUnavailable(self._told(error)) from error
            self._connection, self._channel, self._is_broken = connection, channel, False
        if self._scheme is not None and self._scheme.held == REMOVED and not self._warned and self._scheme.module:
            self._warned = True
            log.warning(
                "%s:// removes a message when it hands it out: what a killed worker holds is lost",
                self._scheme.name,
                extra={"action": "broker_without_lease"},
            )

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Declare exchanges, queues and bindings through kombu."""
        from kombu.entity import Exchange, Queue

        with self._ready():
            for queue in queues:
                exchange = Exchange(queue.exchange or queue.name, type=queue.exchange_type)
                entity = Queue(queue.name, exchange, routing_key=queue.routing_key or queue.name)
                entity(self._channel).declare()

    # -- fetching

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """Reserve up to `limit` deliveries, one call each; see the contract. Looks again every `polling_interval`."""
        deadline = time.monotonic() + timeout
        with self._fetch_lock:
            while not self._wake.is_set():
                if got := self._collect(limit):
                    self._busy_at = time.monotonic()
                    return got
                now = time.monotonic()
                if now >= deadline:
                    return []
                pause_s = min(self._pause_s, max(SHORTEST_PAUSE_S, (now - self._busy_at) / 10))
                self._wake.wait(min(deadline - now, pause_s))
            self._wake.clear()
            return []

    def interrupt(self) -> None:
        """Make a waiting `fetch`, or else the next one, return at once."""
        self._wake.set()

    def _collect(self, limit: int) -> list[Delivery]:
        got: list[Delivery] = []
        names = [queue.name for queue in self.context.queues]
        until = time.monotonic() + FETCH_S
        empty: set[str] = set()
        while names and len(got) < limit and len(empty) < len(names) and time.monotonic() < until:
            self._turn += 1
            name = names[self._turn % len(names)]
            if name in empty:
                continue
            with self._ready():
                message = self._channel.basic_get(name)
            if message is None:
                empty.add(name)
            elif (delivery := self._delivery(name, message)) is not None:
                got.append(delivery)
        return got

    def _delivery(self, queue: str, message: Any) -> Delivery | None:
        try:
            raw, ours = join_envelope(message)
        except ValueError as error:
            raw, ours = repr(message.body)[:10_000].encode(), {}
            parts: Parts = ({}, {}, str(error))
        else:
            parts = read_envelope(raw)
        headers, properties, problem = parts
        attempts = number(ours, ATTEMPTS)
        receipt = Receipt(self._channel, message, queue, raw, attempts)
        if len(raw) > self.context.max_message_bytes:
            reason = f"too large: {len(raw)} bytes, at most {self.context.max_message_bytes} are delivered"
            with self._ready():
                self._bury(receipt, reason, attempts)
            return None
        self._held[id(receipt)] = receipt
        return Delivery(
            queue,
            raw,
            headers,
            receipt,
            properties,
            attempts=attempts,
            redelivered=bool(ours.get(RETURNED)) or bool(message.delivery_info.get("redelivered")),
            error=problem,
        )

    # -- settling

    def settle(self, batch: Sequence[Settlement]) -> None:
        """Carry out the verdicts, one after the other."""
        with self._ready():
            for each in batch:
                receipt: Receipt = each.delivery.receipt
                if receipt.is_settled:
                    continue
                if each.verdict in (Verdict.REQUEUE, Verdict.DELAY):
                    counts = each.count and each.verdict is Verdict.REQUEUE
                    self._put_back(receipt, receipt.attempts + counts)
                elif each.verdict is Verdict.DEAD:
                    self._bury(receipt, each.reason, receipt.attempts + each.count)
                elif each.verdict is Verdict.ACK:
                    self._acknowledge(receipt)

    def _put_back(self, receipt: Receipt, attempts: int) -> None:
        try:
            body, parts = split_envelope(receipt.raw)
        except ValueError:  # kombu read it, and we could not: only kombu can put it back
            receipt.is_settled = True
            self._held.pop(id(receipt), None)
            receipt.channel.basic_reject(receipt.message.delivery_tag, requeue=True)
            return
        parts["headers"] |= {RETURNED: 1} | ({ATTEMPTS: attempts} if attempts else {})
        self._publish(receipt.queue, body, parts)
        self._acknowledge(receipt)

    def _bury(self, receipt: Receipt, reason: str, attempts: int) -> None:
        self._dead.add(receipt.queue, receipt.raw, reason, attempts)
        self._acknowledge(receipt)

    def _acknowledge(self, receipt: Receipt) -> None:
        receipt.is_settled = True
        self._held.pop(id(receipt), None)
        try:
            receipt.channel.basic_ack(receipt.message.delivery_tag)
        except Exception:  # of any library; kombu's own bookkeeping fails in several ways once a channel is closed
            if receipt.channel is self._channel:
                raise  # of an earlier connection: what was not acknowledged there is the server's to deliver again

    def _publish(self, queue: str, body: bytes, parts: dict[str, Any]) -> None:
        message = self._channel.prepare_message(body, **parts)
        self._channel.basic_publish(message, exchange="", routing_key=queue)

    def renew(self, held: Sequence[Delivery]) -> Sequence[Delivery]:
        """There is no lease: nobody else gets what this process has while it is connected."""
        return []

    # -- the rest

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        """Append one envelope to a queue.

        :raises BrokerRefused: kombu sends no bytes that are no envelope.
        """
        try:
            body, parts = split_envelope(raw)
        except ValueError as error:
            raise BrokerRefused(str(error)) from error
        with self._ready():
            self._channel.queue_declare(queue)
            self._publish(queue, body if payload is None else payload, parts)

    def purge(self, queue: str) -> int:
        """Delete the waiting messages of a queue; how many, as far as the transport can tell."""
        with self._ready():
            self._channel.queue_declare(queue)
            return int(self._channel.queue_purge(queue) or 0)

    def size(self, queue: str) -> QueueInfo:
        """Count the messages of a queue; `in_flight` are those of this worker, others are not to be seen."""
        with self._ready():
            waiting = self._channel.queue_declare(queue).message_count
            held = sum(1 for receipt in list(self._held.values()) if receipt.queue == queue)
            return QueueInfo(queue, int(waiting or 0), held, dead=self._dead.count(queue))

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """The newest dead letters of a queue, newest first. Each is taken out and put back, so two should not look."""
        with self._ready():
            return self._dead.newest(queue, limit)

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        """One dead letter by its id."""
        with self._ready():
            return next((letter for letter in self._dead.newest(queue) if letter.id == id), None)

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Put dead letters back at the end of their queue."""

        def replay(letter: DeadLetter) -> None:
            try:
                body, parts = split_envelope(letter.raw)
            except ValueError as error:
                raise BrokerRefused(f"dead letter {letter.id} cannot be sent again: {error}") from error
            self._publish(queue, body, parts)

        with self._ready():
            return self._dead.take_out(queue, ids, replay)

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Delete dead letters."""
        with self._ready():
            return self._dead.take_out(queue, ids, lambda letter: None)

    def close(self) -> None:
        """Give back what is reserved but unsettled, and close the connection. Idempotent."""
        self.interrupt()
        with self._fetch_lock, self._lock:
            self._wake.clear()
            if self._connection is not None:
                try:
                    for receipt in list(self._held.values()):
                        self._put_back(receipt, receipt.attempts)
                except self._errors as error:
                    log.error(
                        "%d messages could not be given back: %s",
                        len(self._held),
                        self._told(error),
                        extra={"action": "give_back_failed"},
                    )
            self._held.clear()
            self._disconnect()

    @property
    def _dead(self) -> DeadQueue:
        return DeadQueue(self._channel, self._publish)

    def _disconnect(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except self._errors:
                pass  # it is gone already

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with self._lock:
            if self._channel is None:
                raise BrokerUnavailable(f"{scheme_of(self.context.url)}:// is not connected")
            try:
                yield
            except self._errors as error:
                self._is_broken = True
                raise BrokerUnavailable(self._told(error)) from error

    def _told(self, error: BaseException) -> str:
        """Libraries quote their URL in errors: only the kind is told, unless the system says it."""
        detail = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        return f"{scheme_of(self.context.url)}:// failed ({type(error).__name__}{detail})"


class MemoryBroker(KombuBroker):
    """`memory://`: kombu's queues in the worker's own process, for tests and embedding.

    Nothing outlives the process and nobody else sees it, so tasks must be sent from where they run: pool `solo` only.
    """

    in_process = True
    exchange_types = ("direct", "topic", "fanout")
    longest_pause_s = 0.02
