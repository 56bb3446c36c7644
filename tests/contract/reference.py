"""A broker and a result backend in memory that obey the contracts: the measure for the mutants.

`MemoryStorage` stands for the server: every method is one atomic step. It lives in the process, or in a
process of its own (`storage_server`) so that holders can be killed around it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, ClassVar

from kernel_worker import (
    Broker,
    BrokerCapability,
    BrokerContext,
    BrokerUnavailable,
    ControlCommand,
    DeadLetter,
    Delivery,
    Permission,
    QueueInfo,
    QueueSpec,
    Settlement,
    StoredResult,
    Verdict,
)
from kernel_worker.steps import Bootstep
from kernel_worker.testing import eventually

CAPABILITIES = frozenset(set(BrokerCapability) - {BrokerCapability.BROADCAST})


@dataclass
class Message:
    """One message, wherever it is."""

    queue: str
    raw: bytes
    priority: int
    place: tuple[int, int]  # order inside its priority: (front moves, serial)
    attempts: int = 0
    redelivered: bool = False
    recovered: bool = False
    marked: bool = False
    returns: int = 0
    due: float = 0.0  # parked until then
    holder: str = ""  # reserved by
    receipt: int = 0  # of the present reservation


@dataclass
class MemoryStorage:
    """The server: queues, reservations, parked and dead messages, leases."""

    messages: dict[int, Message] = field(default_factory=dict)
    dead: dict[str, list[DeadLetter]] = field(default_factory=lambda: defaultdict(list))
    leases: dict[str, tuple[float, float]] = field(default_factory=dict)  # holder: (length, end)
    serial: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    front: Iterator[int] = field(default_factory=lambda: itertools.count(-1, -1))
    turn: int = 0

    def __post_init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.interrupted: set[str] = set()
        self.buried: dict[str, int] = {}  # id of a dead letter: its priority

    def publish(self, queue: str, raw: bytes, priority: int) -> None:
        with self.changed:
            number = next(self.serial)
            self.messages[number] = Message(queue, raw, priority, (0, number))
            self.changed.notify_all()

    # ------------------------------------------------------------------ reserving

    def reserve(self, holder: str, lease_s: float, queues: list[str], limit: int, timeout: float) -> list[Any]:
        """The next messages, now reserved: (number, receipt, message) each."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                self.bring_back()
                numbers = self.next_numbers(queues, limit)
                if numbers or holder in self.interrupted or time.monotonic() >= deadline:
                    self.interrupted.discard(holder)
                    return self.register(holder, lease_s, numbers)
                self.changed.wait(min(0.05, max(0.0, deadline - time.monotonic())))

    def next_numbers(self, queues: list[str], limit: int) -> list[int]:
        """Waiting messages by priority, then by place; queues take turns."""
        self.turn += 1
        rotated = queues[self.turn % len(queues) :] + queues[: self.turn % len(queues)] if queues else []
        found: list[tuple[int, int, tuple[int, int], int]] = []
        for number, message in self.messages.items():
            if message.queue in queues and not message.holder and not message.due:
                found.append((message.priority, rotated.index(message.queue), message.place, number))
        return [number for *_, number in sorted(found)[:limit]]

    def register(self, holder: str, lease_s: float, numbers: list[int]) -> list[Any]:
        with self.changed:
            self.leases[holder] = (lease_s, time.monotonic() + lease_s)
            taken = []
            for number in numbers:
                message = self.messages[number]
                message.holder, message.receipt = holder, next(self.serial)
                taken.append((number, message.receipt, message))
            return taken

    def bring_back(self) -> None:
        """Messages that are due, and those of holders whose lease is over, wait again."""
        now = time.time()
        for message in self.messages.values():
            if message.due and message.due <= now:
                message.place, message.due = (-1, int(message.due * 1000)), 0.0
        over = {holder for holder, (_, end) in self.leases.items() if end < time.monotonic()}
        for message in self.messages.values():
            if message.holder in over:
                self.give_back(message)
                message.recovered = True
        for holder in over:
            del self.leases[holder]

    def give_back(self, message: Message) -> None:
        message.holder, message.receipt, message.redelivered, message.marked = "", 0, True, False
        message.place = (-2, message.place[1])

    def held(self, holder: str, number: int, receipt: int) -> Message | None:
        message = self.messages.get(number)
        return message if message and message.holder == holder and message.receipt == receipt else None

    # ------------------------------------------------------------------ settling

    def settle(self, holder: str, verdicts: list[tuple[int, int, str, str, float, bool]]) -> None:
        with self.changed:
            for number, receipt, verdict, reason, until, count in verdicts:
                message = self.held(holder, number, receipt)
                if message is not None:
                    self.carry_out(number, message, Verdict(verdict), reason, until, count)
            self.changed.notify_all()

    def carry_out(
        self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
    ) -> None:
        if verdict is Verdict.DELAY:
            message.returns += count
        elif count or (verdict is Verdict.MARK and not message.marked):
            message.attempts += 1
            message.recovered, message.marked = False, True
        if verdict is Verdict.MARK:
            return
        if verdict is Verdict.ACK:
            del self.messages[number]
        elif verdict is Verdict.DEAD:
            del self.messages[number]
            self.bury(number, message, reason)
        else:
            self.give_back(message)
            message.due = until if verdict is Verdict.DELAY else 0.0

    def bury(self, number: int, message: Message, reason: str) -> None:
        letter = DeadLetter(str(number), message.queue, message.raw, reason, time.time(), message.attempts)
        self.buried[letter.id] = message.priority
        self.dead[message.queue].insert(0, letter)

    def renew(self, holder: str, lease_s: float, receipts: list[tuple[int, int]]) -> list[bool]:
        """Whether each of the receipts is good still."""
        with self.changed:
            self.leases[holder] = (lease_s, time.monotonic() + lease_s)
            return [self.held(holder, *receipt) is not None for receipt in receipts]

    def release(self, holder: str) -> None:
        with self.changed:
            for message in self.messages.values():
                if message.holder == holder:
                    self.give_back(message)
            self.leases.pop(holder, None)
            self.changed.notify_all()

    # ------------------------------------------------------------------ the rest

    def interrupt(self, holder: str) -> None:
        with self.changed:
            self.interrupted.add(holder)
            self.changed.notify_all()

    def purge(self, queue: str) -> int:
        with self.changed:
            gone = [n for n, message in self.messages.items() if message.queue == queue and not message.holder]
            for number in gone:
                del self.messages[number]
            return len(gone)

    def size(self, queue: str) -> tuple[int, int, int, int]:
        with self.changed:
            here = [message for message in self.messages.values() if message.queue == queue]
            held = sum(1 for message in here if message.holder)
            parked = sum(1 for message in here if message.due)
            return len(here) - held - parked, held, parked, len(self.dead[queue])

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        with self.changed:
            return self.dead[queue][:limit]

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        return next((letter for letter in self.dead_letters(queue, 1 << 30) if letter.id == id), None)

    def exhume(self, queue: str, ids: Sequence[str] | None, replay: bool) -> int:
        with self.changed:
            found = [letter for letter in self.dead[queue][::-1] if ids is None or letter.id in ids]
            for letter in found:
                self.dead[queue].remove(letter)
                priority = self.buried.pop(letter.id)
                if replay:
                    self.publish(queue, letter.raw, priority)
            return len(found)


# ---------------------------------------------------------------------- the broker

_STORAGES: dict[str, MemoryStorage] = {}
_KEY = b"reference storage"


class _Manager(BaseManager):
    """Serves one storage over a Unix socket."""


class MemoryBroker(Broker):
    """The correct driver. `memory:<name>`: storage of this process; `memory:///path`: of a storage server."""

    capabilities: ClassVar[frozenset[BrokerCapability]] = CAPABILITIES

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        self.storage: Any = None
        self.names = [queue.name for queue in context.queues]

    def connect(self) -> None:
        where = self.context.url.removeprefix("memory:")
        if not where.startswith("//"):
            self.storage = _STORAGES.setdefault(where, MemoryStorage())
            return
        _Manager.register("storage")
        manager = _Manager(address=where.removeprefix("//"), authkey=_KEY)
        try:
            manager.connect()
        except OSError as error:
            raise BrokerUnavailable(f"no storage server: {error}") from error
        self.storage = manager.storage()  # type: ignore[attr-defined]

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        pass

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        taken = self.storage.reserve(self.context.holder, self.context.lease_s, self.names, limit, timeout)
        deliveries = [self.delivery(number, receipt, message) for number, receipt, message in taken]
        return [each for each in deliveries if not self.too_large(each)]

    def too_large(self, delivery: Delivery) -> bool:
        if len(delivery.raw) <= self.context.max_message_bytes:
            return False
        self.settle([Settlement(delivery, Verdict.DEAD, reason=f"{len(delivery.raw)} bytes are too many")])
        return True

    def delivery(self, number: int, receipt: int, message: Message) -> Delivery:
        delivery = Delivery(
            message.queue,
            message.raw,
            {},
            (number, receipt),
            attempts=message.attempts,
            redelivered=message.redelivered,
            recovered=message.recovered,
            returns=message.returns,
        )
        try:
            envelope = json.loads(message.raw)
            delivery.headers, delivery.properties = envelope["headers"], envelope["properties"]
            if not (isinstance(delivery.headers, dict) and isinstance(delivery.properties, dict)):
                raise TypeError("headers and properties are objects")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            delivery.headers, delivery.properties = {}, {}
            delivery.error = f"no envelope: {type(error).__name__}"
        return delivery

    def settle(self, batch: Sequence[Settlement]) -> None:
        self.storage.settle(
            self.context.holder,
            [(*each.delivery.receipt, each.verdict.value, each.reason, each.until, each.count) for each in batch],
        )

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        receipts = [delivery.receipt for delivery in held]
        kept = self.storage.renew(self.context.holder, self.context.lease_s, receipts)
        return [delivery for delivery, is_held in zip(held, kept, strict=True) if not is_held]

    def interrupt(self) -> None:
        self.storage.interrupt(self.context.holder)

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        self.storage.publish(queue, raw, priority)

    def purge(self, queue: str) -> int:
        return int(self.storage.purge(queue))

    def size(self, queue: str) -> QueueInfo:
        return QueueInfo(queue, *self.storage.size(queue))

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        return list(self.storage.dead_letters(queue, limit))

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        found: DeadLetter | None = self.storage.dead_letter(queue, id)
        return found

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        return int(self.storage.exhume(queue, ids, True))

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        return int(self.storage.exhume(queue, ids, False))

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        self.names = [queue.name for queue in queues]
        super().consume(queues)

    def close(self) -> None:
        if self.storage is not None:
            with contextlib.suppress(OSError, EOFError):
                self.storage.release(self.context.holder)


def serve(address: str, storage: str = "MemoryStorage") -> None:
    """Serve a storage over a Unix socket until killed. Main function of the storage server's process."""
    module, _, name = storage.rpartition(".")
    held = getattr(importlib.import_module(module or __name__), name)()
    _Manager.register("storage", callable=lambda: held)
    _Manager(address=address, authkey=_KEY).get_server().serve_forever()


@contextlib.contextmanager
def storage_server(folder: Path, storage: str = "MemoryStorage") -> Iterator[str]:
    """Run a storage in a process of its own; gives the broker URL."""
    address = str(folder / "storage")
    code = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as here; here.serve({address!r}, {storage!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            eventually(lambda: _Manager(address=address, authkey=_KEY).connect() or True, message="the storage server")
            yield f"memory://{address}"
        finally:
            process.kill()


# ---------------------------------------------------------------------- results


class MemoryResults:
    """The correct result backend, in one process."""

    def __init__(self, url: str = "memory:", settings: Any = None) -> None:
        self.stored: dict[str, tuple[str, bytes, float | None]] = {}
        self.changed = threading.Condition()
        self.waiting = 0

    def store(self, results: Sequence[StoredResult]) -> None:
        with self.changed:
            for each in results:
                kept_from_retry = ("FAILURE", "REVOKED") if each.state == "RETRY" else ()
                if self.state(each.task_id) not in ("SUCCESS", *kept_from_retry):
                    end = None if each.expires is None else time.monotonic() + each.expires
                    self.stored[each.task_id] = (each.state, each.payload, end)
            self.changed.notify_all()

    def state(self, task_id: str) -> str | None:
        return self.stored[task_id][0] if self.fetch(task_id) is not None else None

    def fetch(self, task_id: str) -> bytes | None:
        _, payload, end = self.stored.get(task_id, ("", None, None))
        return None if end is not None and end <= time.monotonic() else payload

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.changed:
            self.waiting += 1
            try:
                while True:
                    meta = self.fetch(task_id)
                    if meta is not None and is_final(meta):
                        return meta
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return None
                    self.changed.wait(left)
            finally:
                self.waiting -= 1

    def forget(self, task_id: str) -> None:
        with self.changed:
            self.stored.pop(task_id, None)

    def close(self) -> None:
        pass


# ---------------------------------------------------------------------- a boot step and a control command


class EchoStep(Bootstep):
    """The correct step: a thread that answers on a socket pair. Its API is the near end."""

    name = "echo"

    def __init__(self) -> None:
        self.sockets: tuple[socket.socket, socket.socket] | None = None
        self.thread: threading.Thread | None = None

    def start(self, ctx: Any) -> object:
        self.sockets = socket.socketpair()
        ctx.loop.call_later(60.0, len, ())
        self.thread = threading.Thread(target=self.serve, args=(self.sockets[1],), name="echo")
        self.thread.start()
        ctx.wait(lambda: True, "nothing")
        return self.sockets[0]

    def serve(self, far: socket.socket) -> None:
        while data := far.recv(100):
            far.send(data)

    def close(self, ctx: Any) -> None:
        if self.sockets is not None:
            self.sockets[0].shutdown(socket.SHUT_WR)

    def stop(self, ctx: Any, deadline: float) -> None:
        if self.sockets is None:
            return
        with contextlib.suppress(OSError):
            self.sockets[0].shutdown(socket.SHUT_RDWR)
        if self.thread is not None:
            self.thread.join(max(0.0, deadline - time.monotonic()))
        for each in self.sockets:
            each.close()
        self.sockets = None

    def terminate(self, ctx: Any) -> None:
        self.stop(ctx, time.monotonic() + 0.5)


def count_down(context: Any, *, start: int, word: str = "go") -> dict[str, Any]:
    return {"count": [*range(start, 0, -1)], "then": word}


COUNT_DOWN = ControlCommand(
    "count_down",
    count_down,
    Permission.READ,
    arguments={"start": int, "word": str},
    help="Count down from a number.",
    aliases=("countdown",),
)
