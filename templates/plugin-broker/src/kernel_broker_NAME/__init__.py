"""The @name@ broker: messages are files in a folder, see `folder`. Kernel process; threads as `Broker` says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from kernel_worker import (
    Broker,
    BrokerCapability,
    BrokerContext,
    BrokerUnavailable,
    DeadLetter,
    Delivery,
    QueueInfo,
    QueueSpec,
    Settlement,
    Verdict,
)

from .folder import Folder, Name, listed, move, new_name, quoted, stamped

POLL_S = 0.02
"""A folder tells nobody what is new in it: a waiting `fetch` looks this often."""


class Receipt(NamedTuple):
    """Where a reserved message lies."""

    held: Path
    name: Name


class @Name@Broker(Broker):
    """A broker that needs no server. Every change of a message is one rename."""

    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset(
        {
            BrokerCapability.ATTEMPTS,
            BrokerCapability.BATCH_FETCH,
            BrokerCapability.DEAD_LETTER,
            BrokerCapability.DELAY,
            BrokerCapability.LEASE,
        }
    )

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        self._folder = Folder(context.url)
        self._mine = self._folder.holder(context.holder)
        self._queues = [queue.name for queue in context.queues]
        self._interrupted = threading.Event()
        self._reclaim_at = 0.0

    def connect(self) -> None:
        try:
            self._folder.hold(self._mine, self.context.lease_s)
        except OSError as error:
            raise BrokerUnavailable(f"{self._folder.root}: {error.strerror}") from error

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        for queue in queues:
            self._folder.make(queue.name)

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        while True:
            got = self._reserve(limit)
            left = deadline - time.monotonic()
            if got or left <= 0 or self._interrupted.wait(min(POLL_S, left)):
                self._interrupted.clear()
                return got

    def settle(self, batch: Sequence[Settlement]) -> None:
        for settlement in batch:
            queue, (held, name) = settlement.delivery.queue, settlement.delivery.receipt
            counted = name._replace(attempts=name.attempts + 1, recovered=0) if settlement.count else name
            if settlement.verdict is Verdict.ACK:
                held.unlink(missing_ok=True)
            elif settlement.verdict is Verdict.REQUEUE:
                self._folder.requeue(held, queue, counted)
            elif settlement.verdict is Verdict.DELAY:
                returned = name._replace(returns=name.returns + settlement.count)
                move(held, self._folder.queue(queue, "parked") / stamped(settlement.until, returned))
            elif settlement.verdict is Verdict.DEAD:
                self._bury(held, queue, counted, settlement.reason)

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        self._folder.hold(self._mine, self.context.lease_s)
        return [delivery for delivery in held if not delivery.receipt.held.exists()]

    def interrupt(self) -> None:
        self._interrupted.set()

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        self._folder.add(queue, raw)

    def purge(self, queue: str) -> int:
        folders = [self._folder.queue(queue, state) for state in ("waiting", "parked")]
        gone = [folder / name for folder in folders for name in listed(folder)]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def size(self, queue: str) -> QueueInfo:
        waiting, parked = (len(listed(self._folder.queue(queue, state))) for state in ("waiting", "parked"))
        dead = len(listed(self._folder.queue(queue, "dead"))) // 2  # each with its reason
        return QueueInfo(queue, waiting, in_flight=len(list(self._folder.held(queue))), parked=parked, dead=dead)

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        return [self._read_letter(queue, path) for path in reversed(self._graves(queue))][:limit]

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        found = self._graves(queue, [id])
        return self._read_letter(queue, found[0]) if found else None

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        found = self._graves(queue, ids)
        for path in found:
            move(path, self._folder.queue(queue, "waiting") / str(new_name()))
            path.with_name(path.name + ".reason").unlink(missing_ok=True)
        return len(found)

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        found = self._graves(queue, ids)
        for path in found:
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".reason").unlink(missing_ok=True)
        return len(found)

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        self._queues = [queue.name for queue in queues]
        super().consume(queues)

    def close(self) -> None:
        self._folder.give_back(self._mine)

    def _reserve(self, limit: int) -> list[Delivery]:
        if time.monotonic() >= self._reclaim_at:
            self._reclaim_at = time.monotonic() + min(1.0, self.context.lease_s / 5)
            self._folder.reclaim()
        got: list[Delivery] = []
        queues = self._queues
        for queue in queues:
            self._folder.unpark(queue)
            waiting = listed(self._folder.queue(queue, "waiting"))
            if waiting:
                self.renew(())  # what is reserved without a lease would be given away at once
            for text in waiting:
                if len(got) == limit:
                    break
                delivery = self._take(queue, Name.parse(text))
                if delivery is not None:
                    got.append(delivery)
        if queues:
            queues.append(queues.pop(0))  # so that a full queue does not starve the others
        return got

    def _take(self, queue: str, name: Name) -> Delivery | None:
        waiting = self._folder.queue(queue, "waiting") / str(name)
        taken = name._replace(deliveries=name.deliveries + 1)
        held = self._mine / f"{quoted(queue)}~{taken}"
        if not move(waiting, held):
            return None  # another holder was faster
        if (size := held.stat().st_size) > self.context.max_message_bytes:
            self._bury(held, queue, taken, f"{size:,} bytes; the limit is {self.context.max_message_bytes:,}")
            return None
        raw = held.read_bytes()
        headers, properties, error = _read(raw)
        return Delivery(
            queue=queue,
            raw=raw,
            headers=headers,
            receipt=Receipt(held, taken),
            properties=properties,
            attempts=name.attempts,
            redelivered=name.deliveries > 0,
            error=error,
            recovered=bool(name.recovered),
            returns=name.returns,
        )

    def _bury(self, held: Path, queue: str, name: Name, reason: str) -> None:
        grave = self._folder.queue(queue, "dead") / stamped(time.time(), name)
        note = grave.with_name(grave.name + ".reason")
        note.write_text(reason)
        if not move(held, grave):
            note.unlink()

    def _graves(self, queue: str, ids: Sequence[str] | None = None) -> list[Path]:
        """Files of the dead letters of a queue, oldest first; an id is the name of a file."""
        folder = self._folder.queue(queue, "dead")
        names = [text for text in listed(folder) if not text.endswith(".reason")]
        return [folder / text for text in names if ids is None or text in ids]

    def _read_letter(self, queue: str, path: Path) -> DeadLetter:
        died, _, name = path.name.partition("~")
        reason = path.with_name(path.name + ".reason").read_text()
        return DeadLetter(path.name, queue, path.read_bytes(), reason, int(died) / 1e6, Name.parse(name).attempts)


def _read(raw: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any], str | None]:
    """Headers and properties of an envelope, and what is wrong with it."""
    try:
        envelope = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return {}, {}, f"no JSON: {type(error).__name__}"
    if not isinstance(envelope, dict):
        return {}, {}, "no envelope: not a JSON object"
    headers, properties = envelope.get("headers", {}), envelope.get("properties", {})
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return {}, {}, "no envelope: headers or properties are no object"
    return headers, properties, None
