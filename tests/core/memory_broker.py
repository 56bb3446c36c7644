"""A broker in memory that obeys the driver's contract, and notices when the kernel does not.

It can be taken away and brought back, and it complains about calls that the contract forbids: `fetch` and
`settle` on wrong threads, `connect` while another call is under way, more deliveries than were allowed.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerUnavailable
from kernel_worker.types import BrokerCapability, DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement, Verdict


class MemoryBroker(Broker):
    """Waiting, reserved and dead messages of one process."""

    capabilities = frozenset({BrokerCapability.DELAY, BrokerCapability.DEAD_LETTER, BrokerCapability.ATTEMPTS})

    def __init__(self, context: BrokerContext | None = None) -> None:
        super().__init__(context or BrokerContext("memory://"))
        self.waiting: deque[bytes] = deque()
        self.reserved: dict[int, bytes] = {}
        self.parked: list[tuple[float, bytes]] = []
        self.dead: list[DeadLetter] = []
        self.acked: list[str] = []
        self.marked: list[int] = []
        self.away: str = ""
        """While not empty every call fails with this text."""
        self.offences: list[str] = []
        """What the kernel did against the contract."""
        self.calls: Counter[str] = Counter()
        self.settled_batches: list[list[Settlement]] = []
        self.renewals: list[list[Delivery]] = []
        self.closed = False
        self._condition = threading.Condition()
        self._interrupted = False
        self._next = 0
        self._under_way: Counter[str] = Counter()
        self._threads: dict[str, int] = {}

    # -- the test's side

    def put(self, *raws: bytes) -> None:
        """Append messages."""
        with self._condition:
            self.waiting.extend(raws)
            self._condition.notify_all()

    def go_away(self, text: str = "connection refused") -> None:
        """From now on nothing works; what waits in `fetch` is told at once."""
        with self._condition:
            self.away = text
            self._condition.notify_all()

    def come_back(self) -> None:
        """It works again."""
        with self._condition:
            self.away = ""
            self._condition.notify_all()

    # -- the kernel's side

    @contextmanager
    def _call(self, name: str, *, same_thread: str = "") -> Iterator[None]:
        with self._condition:
            self.calls[name] += 1
            if name == "connect" and any(self._under_way.values()):
                self.offences.append(f"connect during {sorted(self._under_way.elements())}")
            if self._under_way["connect"]:
                self.offences.append(f"{name} during connect")
            if same_thread and self._threads.setdefault(same_thread, threading.get_ident()) != threading.get_ident():
                self.offences.append(f"{name} on a second thread")
            self._under_way[name] += 1
        try:
            if name != "connect":
                self._check()
            yield
        finally:
            with self._condition:
                self._under_way[name] -= 1

    def _check(self) -> None:
        if self.away:
            raise BrokerUnavailable(self.away)

    def connect(self) -> None:
        with self._call("connect"):
            self.on_connect()
            self._check()

    def on_connect(self) -> None:
        """A place for a test to interfere."""

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        with self._call("declare"):
            pass

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        with self._call("fetch", same_thread="fetch"), self._condition:
            while not self._interrupted and not self.away:
                self._release_due()
                if self.waiting:
                    return [self._reserve() for _ in range(min(limit, len(self.waiting)))]
                if not self._condition.wait(max(0.0, deadline - time.monotonic())):
                    return []
            self._check()
            self._interrupted = False
            return []

    def _release_due(self) -> None:
        now = time.time()
        self.waiting.extendleft(raw for until, raw in self.parked if until <= now)
        self.parked = [(until, raw) for until, raw in self.parked if until > now]

    def _reserve(self) -> Delivery:
        raw = self.waiting.popleft()
        self._next += 1
        self.reserved[self._next] = raw
        return Delivery("celery", raw, json.loads(raw)["headers"], receipt=self._next)

    def settle(self, batch: Sequence[Settlement]) -> None:
        with self._call("settle", same_thread="settle"):
            self.on_settle(batch)
            self._check()
            with self._condition:
                self.settled_batches.append(list(batch))
                for settlement in batch:
                    self._settle(settlement)
                self._condition.notify_all()

    def on_settle(self, batch: Sequence[Settlement]) -> None:
        """A place for a test to interfere."""

    def _settle(self, settlement: Settlement) -> None:
        if settlement.verdict is Verdict.MARK:
            self.marked.append(settlement.delivery.receipt)
            return
        raw = self.reserved.pop(settlement.delivery.receipt, None)
        if raw is None:
            return
        if settlement.verdict is Verdict.ACK:
            self.acked.append(settlement.delivery.headers["id"])
        elif settlement.verdict is Verdict.REQUEUE:
            self.waiting.appendleft(raw)
        elif settlement.verdict is Verdict.DELAY:
            self.parked.append((settlement.until, raw))
        else:
            self.dead.append(DeadLetter(str(len(self.dead)), "celery", raw, settlement.reason, time.time()))

    def renew(self, held: Sequence[Delivery]) -> Sequence[Delivery] | None:
        with self._call("renew", same_thread="settle"):
            self.renewals.append(list(held))
        return None

    def interrupt(self) -> None:
        with self._condition:
            self.calls["interrupt"] += 1
            self._interrupted = True
            self._condition.notify_all()

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        with self._call("publish"):
            self.put(raw)

    def purge(self, queue: str) -> int:
        with self._call("purge"), self._condition:
            count = len(self.waiting) + len(self.parked)
            self.waiting.clear()
            self.parked.clear()
            return count

    def size(self, queue: str) -> QueueInfo:
        return QueueInfo(queue, len(self.waiting), len(self.reserved), len(self.parked), len(self.dead))

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        return self.dead[::-1][:limit]

    def close(self) -> None:
        with self._condition:
            self.closed = True
            self.waiting.extendleft(self.reserved.values())
            self.reserved.clear()
