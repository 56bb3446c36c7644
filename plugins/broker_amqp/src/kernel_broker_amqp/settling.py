"""Carry out a batch of verdicts: publish what goes elsewhere, confirmed, and only then acknowledge. Settle thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from kernel_worker.types import Settlement, Verdict

from . import topology
from .content import Content, attempts_of, returns_of
from .errors import NotRouted
from .intake import Intake
from .lane import Receipt
from .relay import Outgoing, Relay

_FAR = 1e11  # the year 5138


class Mover:
    """Publishes messages to where they wait: what is given back, delay queues, dead letters.

    One thread at a time.

    :param arguments: what is known of queues, for the type of those made beside them. May grow.
    """

    def __init__(self, relay: Relay, arguments: Mapping[str, Mapping[str, Any]]) -> None:
        self.relay = relay
        self._arguments = arguments
        self._declared: set[str] = set()

    def park(self, messages: Sequence[tuple[str, Content, float]]) -> None:
        """Park messages (queue, message, due as unix time), confirmed."""
        self.publish(self.delayed([(queue, message, due, {}) for queue, message, due in messages], time.time()))

    def give_back(self, receipts: Iterable[Receipt]) -> None:
        """Put messages back, first in line again, confirmed; nothing is counted."""
        self.publish([self.returned(each, attempts_of(each.content), each.recovered) for each in receipts])

    def returned(self, receipt: Receipt, attempts: int, recovered: bool) -> Outgoing:
        """A message as it goes back to its queue."""
        queue, message = receipt.lane.queue, receipt.content
        name = topology.returned_queue(queue)
        self._declare(name, topology.returned_arguments(queue, self._of(queue)))
        header = message.with_own(attempts=attempts or None, returned=True, recovered=recovered or None)
        return Outgoing("", name, header, message.body)

    def delayed(self, messages: Sequence[tuple[str, Content, float, Mapping[str, Any]]], now: float) -> list[Outgoing]:
        """The messages as they are parked, each for the longest step before it is due; their queues exist then.

        :param messages: queue, message, due, and headers of ours to change.
        """
        found: list[Outgoing] = []
        declared: set[str] = set()
        for queue, message, due, own in messages:
            left_s = min(max(due - now, 0.0), topology.DELAY_STEPS_S[-1]) if due == due else 0.0  # NaN: now
            step = topology.step_for(left_s)
            name = topology.delay_queue(queue, step)
            if name not in declared:
                # With every batch: declaring is what keeps an unused queue from expiring.
                quorum = topology.is_quorum(self._of(queue))
                self.relay.declare_queue(name, topology.delay_arguments(queue, step, quorum=quorum))
                declared.add(name)
            # Shorter than the shortest step: a time to live of its own, in a queue where nobody waits long.
            expiration = str(int(left_s * 1000)) if left_s < step else None
            header = message.with_own(expiration, **{**own, "due": min(due, _FAR) if due == due else 0.0})
            found.append(Outgoing("", name, header, message.body))
        return found

    def buried(self, queue: str, message: Content, reason: str, attempts: int) -> Outgoing:
        """The message as a dead letter; their queue exists afterwards."""
        name = topology.dead_queue(queue)
        self._declare(name, topology.dead_arguments(quorum=topology.is_quorum(self._of(queue))))
        header = message.with_own(attempts=attempts, reason=_storable(reason), died_at=time.time(), letter=uuid4().hex)
        return Outgoing("", name, header, message.body)

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish all, confirmed. A queue of ours that somebody deleted is declared again by the next try."""
        try:
            self.relay.publish(messages)
        except NotRouted:
            self._declared.clear()
            raise

    def _of(self, queue: str) -> Mapping[str, Any]:
        return self._arguments.get(queue, {})

    def _declare(self, name: str, arguments: Mapping[str, Any]) -> None:
        if name not in self._declared:
            if not self.relay.exists(name):  # one that is there may be of another kind: it is used as it is
                self.relay.declare_queue(name, arguments)
            self._declared.add(name)


def settle(intake: Intake, mover: Mover, batch: Sequence[Settlement]) -> None:
    """Carry out the verdicts; deliveries of connections that are gone, or settled already, are skipped.

    What only needs an acknowledgement gets it first: a server that takes no publishes just now must not hold it up.
    """
    session = intake.current()
    claimed: dict[int, tuple[Receipt, Settlement]] = {}
    for settlement in batch:
        receipt: Receipt = settlement.delivery.receipt
        if session.holds(receipt) and settlement.verdict is not Verdict.MARK:
            claimed.setdefault(id(receipt), (receipt, settlement))
    session.acknowledge(receipt for receipt, each in claimed.values() if each.verdict is Verdict.ACK)
    moved = [(receipt, each) for receipt, each in claimed.values() if each.verdict is not Verdict.ACK]
    if moved:
        with intake.moving:
            mover.publish(_moved(mover, moved))
            session.acknowledge(receipt for receipt, _ in moved)
        back = [each for _, each in moved if each.verdict is Verdict.REQUEUE]
        if back:
            intake.look_soon(at_once=any(each.count for each in back))


def _moved(mover: Mover, moved: Sequence[tuple[Receipt, Settlement]]) -> list[Outgoing]:
    """What has to be published: the parked ones in the order of their times, so that none waits behind a later one."""
    found: list[Outgoing] = []
    parked: list[tuple[str, Content, float, Mapping[str, Any]]] = []
    for receipt, each in moved:
        message, queue = receipt.content, each.delivery.queue
        is_attempt = each.count and each.verdict is not Verdict.DELAY
        attempts = attempts_of(message) + is_attempt
        recovered = receipt.recovered and not is_attempt
        if each.verdict is Verdict.DEAD:
            found.append(mover.buried(queue, message, each.reason, attempts))
        elif each.verdict is Verdict.REQUEUE:
            found.append(mover.returned(receipt, attempts, recovered))
        else:
            returns = returns_of(message) + each.count
            own = {"attempts": attempts or None, "recovered": recovered or None, "returns": returns or None}
            parked.append((queue, message, each.until, own))
    parked.sort(key=lambda each: each[2] if each[2] == each[2] else 0.0)
    return found + mover.delayed(parked, time.time())


def _storable(reason: str) -> str:
    """Text that is UTF-8: a reason may quote anybody's bytes."""
    return reason.encode("utf-8", "backslashreplace").decode()
