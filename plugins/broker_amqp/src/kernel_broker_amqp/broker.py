"""The RabbitMQ driver: connections of their own for each caller, and the kernel's words for errors.

fetch thread    intake.py     consume; parks again what came too early, over a relay of its own
settle thread   settling.py   acks on the channel that delivered; publishes over a relay of its own; heartbeats
any thread      shelves.py    everything else, one call at a time
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable, ConfigError
from kernel_worker.types import BrokerCapability, DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement

from . import settling, shelves
from .errors import AmqpRefused, AmqpUnavailable
from .intake import Intake
from .interrupt import Interrupt
from .link import Link
from .relay import Relay
from .server import parse_all
from .settling import Mover
from .topology import is_quorum
from .wire import TooLarge

_GRACE_S = 0.05
_RESTED_S = 2.0  # a kernel that has not fetched for so long has no room: consumers do not stay open for it


class AmqpBroker(Broker):
    """Queues in RabbitMQ, shared with Celery and kombu peers.

    A delivery belongs to the connection it came over, for as long as that lives: AMQP's own kind of lease. What a
    lost connection held is delivered again by the server, and settling it has no effect.

    :raises ConfigError: the URL or an option makes no sense.
    """

    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset(
        {
            BrokerCapability.DELAY,
            BrokerCapability.PRIORITY,
            BrokerCapability.DEAD_LETTER,
            BrokerCapability.ATTEMPTS,
            BrokerCapability.BATCH_FETCH,
        }
    )

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        try:
            self._addresses = parse_all(context.url, context.options)
        except ValueError as error:
            raise ConfigError(f"amqp broker: {error}") from None
        if not context.queues:
            raise ConfigError("amqp broker: no queue to consume from", hint="name one with -Q")
        self._known: dict[str, Mapping[str, Any]] = {spec.name: spec.arguments for spec in context.queues}
        self._interrupt = Interrupt()
        self._parker = Mover(Relay(self._addresses, f"kw:fetch:{context.holder}"), self._known)
        self._mover = Mover(Relay(self._addresses, f"kw:settle:{context.holder}"), self._known)
        self._other = Relay(self._addresses, f"kw:other:{context.holder}")
        self._other_lock = threading.Lock()
        self._intake = Intake(
            context.queues,
            context.max_message_bytes,
            self._interrupt,
            self._parker.park,
            lambda specs: shelves.declare(self._parker.relay, specs, self._known),
        )
        self._link: Link | None = None

    def connect(self) -> None:
        """Open the consuming connection, unless it is still good: then what is held stays ours."""
        self._interrupt.open()
        with _errors():
            if self._link is not None and self._is_alive(self._link):
                return
            self._hang_up()
            self._link = Link.open_any(self._addresses, f"kw:consume:{self.context.holder}")
            self._intake.attach(self._link)

    def _is_alive(self, link: Link) -> bool:
        try:
            link.beat()
        except AmqpUnavailable:
            return False
        return link.is_open

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        with self._borrow() as relay:
            shelves.declare(relay, queues, self._known)
        is_any_quorum = any(is_quorum(arguments) for arguments in self._known.values())
        self._intake.grace_s = _GRACE_S if is_any_quorum else 0.0

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        self._intake.use(queues)
        super().consume(queues)

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        with _errors():
            return self._intake.fetch(limit, timeout)

    def settle(self, batch: Sequence[Settlement]) -> None:
        if batch:
            with _errors():
                settling.settle(self._intake, self._mover, batch)

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        """Keep the connections alive: AMQP has no other lease than that. Gives what ended with its connection or its
        channel, and is delivered again to anybody."""
        with _errors():
            self._intake.beat()
            if time.monotonic() - self._intake.fetched_at > _RESTED_S and (unread := self._intake.rest()):
                self._mover.give_back(unread)
                self._intake.current().acknowledge(unread)
            self._mover.relay.beat()
        if self._other_lock.acquire(blocking=False):
            try:
                self._other.beat()
            finally:
                self._other_lock.release()
        session = self._intake.current()
        return [delivery for delivery in held if not session.holds(delivery.receipt)]

    def interrupt(self) -> None:
        self._interrupt.set()

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        """Append one envelope, confirmed. A queue that does not exist is declared without arguments.

        :raises BrokerRefused: also for a header that AMQP cannot carry.
        """
        with self._borrow() as relay:
            try:
                shelves.publish(relay, queue, raw, payload, priority)
            except ValueError as error:
                raise BrokerRefused(f"queue {queue!r}: {error}") from None

    def purge(self, queue: str) -> int:
        with self._borrow() as relay:
            return shelves.purge(relay, queue)

    def size(self, queue: str) -> QueueInfo:
        """Count the messages of a queue. AMQP tells nothing of what others hold: `in_flight` is this worker's own."""
        with self._borrow() as relay:
            waiting, parked, dead = shelves.counts(relay, queue)
        held, unread = self._intake.held(queue)
        return QueueInfo(queue, waiting + unread, held, parked, dead)

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        with self._borrow() as relay:
            return shelves.dead_letters(relay, queue, limit)

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        with self._borrow() as relay:
            return shelves.dead_letter(relay, queue, id)

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """See `Broker.replay_dead`. One transaction: only a server that crashes within it can leave two of a letter."""
        with self._borrow() as relay:
            return shelves.replay_dead(relay, queue, ids)

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        with self._borrow() as relay:
            return shelves.drop_dead(relay, queue, ids)

    def close(self) -> None:
        self._give_all_back()
        self._hang_up()
        self._interrupt.close()

    # ------------------------------------------------------------------ connections

    def _give_all_back(self) -> None:
        """Put back what is held, so that nobody takes it for what a dead holder left. Never raises."""
        link, session = self._link, self._intake.session
        if link is None or session is None or not link.is_open:
            return
        try:
            with link.reading:
                held = session.held()
                self._mover.give_back(held)
                session.acknowledge(held)
        except (AmqpUnavailable, AmqpRefused):
            pass  # the server puts it back when the connection ends

    def _hang_up(self) -> None:
        """Close all connections; the server puts back what the consuming one held."""
        link, self._link = self._link, None
        if link is not None:
            self._intake.session = None
            link.close()
        self._parker.relay.close()
        self._mover.relay.close()
        with self._other_lock:
            self._other.close()

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[Relay]:
        """The connection for everything that is neither fetch nor settle."""
        with self._other_lock, _errors():
            if not self._other.is_idle_and_alive:
                self._other.close()
            yield self._other


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The kernel's errors for the driver's."""
    try:
        yield
    except AmqpUnavailable as error:
        raise BrokerUnavailable(str(error)) from error
    except AmqpRefused as error:
        raise BrokerRefused(str(error), hint=error.hint) from error
    except TooLarge as error:
        raise BrokerRefused(str(error)) from error
