"""The Redis broker driver: three connections, each with its own caller, and the kernel's words for errors.

fetch thread    intake.py    reserve, wait, bring back
settle thread   settling.py  carry out verdicts, renew leases
any thread      shelves.py, graveyard.py   everything else, one call at a time
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from kernel_result_redis.connection import Connection
from kernel_result_redis.errors import RedisRefused, RedisUnavailable, ReplyError
from kernel_result_redis.server import Server, parse_all
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable, ConfigError
from kernel_worker.types import BrokerCapability, DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement

from . import graveyard, scripts, settling, shelves
from .intake import Claim, Intake, release
from .interrupt import Interrupt
from .layout import Layout

log = logging.getLogger(__name__)

_OLDEST = (6, 2)  # RPOP with a count
_VISIBILITY_S = 3600.0  # kombu's default
_STALE_S = 10.0  # not used for so long, the connection for the rest is asked for a sign of life
_SIGN_S = 2.0
# Makes every tag longer than 64 bytes, so that Redis never keeps `unacked_index` as a packed list, where adding
# and removing one of a hundred members costs 7 µs instead of 1 (measured, zset-max-listpack-value 64).
_RANDOM_BYTES = 28


class RedisBroker(Broker):
    """Queues in Redis, shared with Celery and kombu peers.

    :raises ConfigError: the URL, an option or a queue's name makes no sense.
    """

    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset(BrokerCapability) - {BrokerCapability.BROADCAST}

    def __init__(self, context: BrokerContext) -> None:
        options = context.options
        try:
            self._servers = parse_all(context.url, options)
            self._server = self._servers[0]
            self._layout = Layout(options, self._server.db)
            visibility_s = float(options.get("visibility_timeout") or _VISIBILITY_S)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"redis broker: {error}") from None
        # Celery peers that were told of a visibility timeout take what is older, whoever holds it: the kernel renews
        # three times in a lease, so a lease that is no longer than that keeps them away.
        super().__init__(replace(context, lease_s=min(context.lease_s, visibility_s)))
        names = [queue.name for queue in context.queues]
        refusals = [refusal for name in names if (refusal := self._layout.refusal(name))]
        if refusals or not names:
            raise ConfigError(
                f"redis broker: {'; '.join(refusals) or 'no queue to consume from'}", hint="choose another queue name"
            )
        self._identity = f"{context.holder}/{os.urandom(_RANDOM_BYTES).hex()}"
        self._interrupt = Interrupt()
        claim = Claim(self._identity, self.context.lease_s, context.max_message_bytes, visibility_s)
        strategy = str(options.get("queue_order_strategy") or "round_robin")
        self._intake = Intake(self._layout, names, claim, self._interrupt, strategy)
        self._marked: set[str] = set()  # settle thread
        self._renewal = settling.Renewal(self._layout, self._identity, self.context.lease_s)
        self._fetching: Connection | None = None
        self._settling: Connection | None = None
        self._other: Connection | None = None
        self._other_lock = threading.Lock()
        self._other_used_at = 0.0
        self._is_open = False
        self._is_warned = False

    def connect(self) -> None:
        """Open the fetch and settle connections anew, to the first of the URL's servers that is up and takes writes,
        beginning with the one used last; its name is resolved again."""
        self._hang_up()
        self._interrupt.open()
        self._is_open = True
        first = self._servers.index(self._server)
        failed: Exception | None = None
        for server in self._servers[first:] + self._servers[:first]:
            try:
                with _errors():
                    self._connect_to(server)
                return
            except (BrokerUnavailable, BrokerRefused) as error:
                self._hang_up()
                failed = failed or error
        assert failed is not None
        raise failed

    def _connect_to(self, server: Server) -> None:
        self._server = server
        self._fetching = Connection.open(server, f"kw:fetch:{self.context.holder}")
        self._check(self._fetching)
        self._settling = Connection.open(server, f"kw:settle:{self.context.holder}")
        for script in (scripts.SETTLE, scripts.RENEW):
            script.load(self._settling)
        self._intake.attach(self._fetching)
        if self.context.may_create:
            self._renewal.begin(self._settling)

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        for spec in queues:
            self._refuse(spec.name)
        with self._borrow() as link:
            shelves.declare(link, self._layout, queues)

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        with _errors():
            return self._intake.fetch(limit, timeout)

    def settle(self, batch: Sequence[Settlement]) -> None:
        if batch:
            with _errors():
                settling.settle(self._link(self._settling), self._layout, batch, self._marked)

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        with _errors():
            return self._renewal.renew(self._link(self._settling), held)

    def interrupt(self) -> None:
        self._interrupt.set()

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        """Append one envelope. `payload` is not for this broker: the envelope holds the body."""
        if payload is not None:
            raise BrokerRefused(f"queue {queue!r}: a Redis envelope holds its body, it cannot come apart")
        self._refuse(queue)
        with self._borrow() as link:
            shelves.publish(link, self._layout, queue, raw, priority)

    def purge(self, queue: str) -> int:
        self._refuse(queue)
        with self._borrow() as link:
            return shelves.purge(link, self._layout, queue)

    def size(self, queue: str) -> QueueInfo:
        self._refuse(queue)
        with self._borrow() as link:
            return shelves.size(link, self._layout, queue)

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        self._refuse(queue)
        with self._borrow() as link:
            return graveyard.newest(link, self._layout, queue, limit)

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        self._refuse(queue)
        with self._borrow() as link:
            return graveyard.find(link, self._layout, queue, id)

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        self._refuse(queue)
        with self._borrow() as link:
            return graveyard.exhume(link, self._layout, queue, ids, replay=True)

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        self._refuse(queue)
        with self._borrow() as link:
            return graveyard.exhume(link, self._layout, queue, ids, replay=False)

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        """See the contract. Raises `BrokerRefused`, and changes nothing, for a name that no queue can have."""
        for queue in queues:
            self._refuse(queue.name)
        self._intake.consume([queue.name for queue in queues])
        super().consume(queues)

    def close(self) -> None:
        is_open, self._is_open = self._is_open, False
        try:
            if is_open and self._intake.serial:  # else nothing was ever reserved
                with self._borrow() as link:
                    release(link, self._layout, [self._identity], died=False)
        except (BrokerUnavailable, BrokerRefused) as error:
            log.warning(
                "%s: what was reserved comes back when the lease ends, in %g s",
                error.message,
                self.context.lease_s,
                extra={"action": "close_without_broker"},
            )
        finally:
            self._hang_up()
            self._interrupt.close()

    # ------------------------------------------------------------------ connections

    def _link(self, connection: Connection | None) -> Connection:
        if connection is None:
            raise RedisUnavailable(f"{self._server}: not connected")
        return connection

    def _hang_up(self) -> None:
        with self._other_lock:
            for connection in (self._fetching, self._settling, self._other):
                if connection is not None:
                    connection.close()
            self._fetching = self._settling = self._other = None

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[Connection]:
        """The connection for everything that is neither fetch nor settle; opened when first needed."""
        with self._other_lock, _errors():
            if self._other is not None and not self._is_usable(self._other):
                self._other.close()
                self._other = None
            if self._other is None:
                self._other = Connection.open(self._server, f"kw:other:{self.context.holder}")
            yield self._other
            self._other_used_at = time.monotonic()

    def _is_usable(self, link: Connection) -> bool:
        is_stale = time.monotonic() - self._other_used_at > _STALE_S
        return link.is_idle() and (not is_stale or link.answers(_SIGN_S))

    def _check(self, link: Connection) -> None:
        """Refuse what cannot work, and warn once of a server that may throw messages or results away."""
        if link.is_replica:
            raise RedisUnavailable(
                f"{link.server}: READONLY, the server is a replica", "the URL must lead to the primary"
            )
        if link.software == "redis" and link.version < _OLDEST:
            version = ".".join(map(str, link.version))
            raise BrokerRefused(f"{link.server}: Redis {version} is too old", hint="use Redis 6.2 or newer")
        if self._is_warned:
            return
        try:
            about = link.call("INFO", "memory").decode("utf-8", "replace")
        except ReplyError:  # not allowed to: the check is a courtesy
            return
        policy = about.partition("maxmemory_policy:")[2].partition("\r")[0]
        if policy not in ("", "noeviction"):
            self._is_warned = True
            log.warning(
                "%s: maxmemory-policy %s lets the server delete %s when its memory is full; set it to noeviction",
                link.server,
                policy,
                "queues" if policy.startswith("allkeys") else "results and counts of deliveries",
                extra={"action": "eviction_policy", "policy": policy},
            )

    def _refuse(self, queue: str) -> None:
        refusal = self._layout.refusal(queue)
        if refusal:
            raise BrokerRefused(refusal, hint="choose another queue name")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The kernel's errors for the driver's."""
    try:
        yield
    except RedisUnavailable as error:
        raise BrokerUnavailable(str(error), hint=error.hint) from error
    except RedisRefused as error:
        raise BrokerRefused(str(error), hint=error.hint) from error
    except ReplyError as error:
        raise BrokerRefused(f"redis: {error}") from error
