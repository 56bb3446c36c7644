"""Carry out a batch of verdicts: publish what goes elsewhere, confirmed, and only then acknowledge. Settle thread."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from uuid import uuid4

from kernel_worker.types import QueueSpec, Settlement, Verdict

from . import topology, wire
from .content import Content, attempts_of
from .errors import NotRouted
from .intake import CHANNEL, Channel, Intake, Receipt
from .relay import Outgoing, Relay

_FAR = 1e11  # the year 5138


class Mover:
    """Publishes messages to where they wait: their own queue again, its delay queues, its dead letters.

    One thread at a time.

    :param queues: what is known of queues, for the type of those made beside them.
    """

    def __init__(self, relay: Relay, queues: Mapping[str, QueueSpec]) -> None:
        self.relay = relay
        self._quorum = {name for name, spec in queues.items() if topology.is_quorum(spec.arguments)}
        self._declared: set[str] = set()

    def park(self, messages: Sequence[tuple[str, Content, float]]) -> None:
        """Park messages (queue, message, due as unix time), confirmed."""
        self.publish(self.delayed(messages, time.time()))

    def delayed(self, messages: Sequence[tuple[str, Content, float]], now: float) -> list[Outgoing]:
        """The messages as they are parked, each for the longest step before it is due; their queues exist then."""
        found: list[Outgoing] = []
        declared: set[str] = set()
        for queue, message, due in messages:
            left_s = min(max(due - now, 0.0), topology.DELAY_STEPS_S[-1]) if due == due else 0.0  # NaN: now
            step = topology.step_for(left_s)
            name = topology.delay_queue(queue, step)
            if name not in declared:
                # With every batch: declaring is what keeps an unused queue from expiring.
                self.relay.declare_queue(name, topology.delay_arguments(queue, step, quorum=queue in self._quorum))
                declared.add(name)
            # Shorter than the shortest step: a time to live of its own, in a queue where nobody waits long.
            expiration = str(int(left_s * 1000)) if left_s < step else None
            header = message.with_own(expiration, due=min(due, _FAR) if due == due else 0.0)
            found.append(Outgoing("", name, header, message.body))
        return found

    def buried(self, queue: str, message: Content, reason: str, attempts: int) -> Outgoing:
        """The message as a dead letter; their queue exists afterwards."""
        name = topology.dead_queue(queue)
        if name not in self._declared:
            self.relay.declare_queue(name, topology.dead_arguments(quorum=queue in self._quorum))
            self._declared.add(name)
        header = message.with_own(attempts=attempts, reason=_storable(reason), died_at=time.time(), letter=uuid4().hex)
        return Outgoing("", name, header, message.body)

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish all, confirmed. A queue of ours that somebody deleted is declared again by the next try."""
        try:
            self.relay.publish(messages)
        except NotRouted:
            self._declared.clear()
            raise


def settle(intake: Intake, mover: Mover, batch: Sequence[Settlement]) -> None:
    """Carry out the verdicts; deliveries of connections that are gone, or settled already, are skipped."""
    channel = intake.current()
    claimed: dict[int, Settlement] = {}
    for settlement in batch:
        receipt: Receipt = settlement.delivery.receipt
        if receipt.channel is channel and receipt.tag in channel.outstanding:
            claimed.setdefault(receipt.tag, settlement)
    returned = [tag for tag, each in claimed.items() if each.verdict is Verdict.REQUEUE and not each.count]
    moved = _moved(mover, claimed.values())
    if moved:
        mover.publish(moved)
    if claimed:
        _write(intake, channel, claimed, sorted(returned))


def _moved(mover: Mover, settlements: Collection[Settlement]) -> list[Outgoing]:
    """What has to be published: the parked ones in the order of their times, so that none waits behind a later one."""
    now = time.time()
    moved = []
    for each in settlements:
        message, queue = each.delivery.receipt.content, each.delivery.queue
        attempts = attempts_of(message) + each.count
        if each.verdict is Verdict.DEAD:
            moved.append(mover.buried(queue, message, each.reason, attempts))
        elif each.verdict is Verdict.REQUEUE and each.count:
            moved.append(Outgoing("", queue, message.with_own(attempts=attempts), message.body))
    parked = sorted((each for each in settlements if each.verdict is Verdict.DELAY), key=_due)
    moved += mover.delayed([(each.delivery.queue, each.delivery.receipt.content, each.until) for each in parked], now)
    return moved


def _due(settlement: Settlement) -> float:
    return settlement.until if settlement.until == settlement.until else 0.0


def _write(intake: Intake, channel: Channel, claimed: Mapping[int, Settlement], returned: Sequence[int]) -> None:
    """Returned ones first: an acknowledgement of several takes all below it that are not settled yet."""
    lowest = channel.outstanding.settle(claimed)
    parts = [wire.reject(CHANNEL, tag) for tag in returned]
    finished = sorted(claimed.keys() - set(returned))
    together = [tag for tag in finished if tag < lowest]
    if together:
        parts.append(wire.ack(CHANNEL, together[-1], multiple=True))
    parts += [wire.ack(CHANNEL, tag) for tag in finished[len(together) :]]
    if returned:
        # Others may take them when this returns: wait for an answer that comes behind them.
        parts.append(wire.frame(CHANNEL, wire.CONFIRM_SELECT, b"\0"))
        channel.syncs_sent += 1
    channel.link.send(b"".join(parts))
    if returned:
        intake.wait_for_sync(channel, channel.syncs_sent)


def _storable(reason: str) -> str:
    """Text that is UTF-8: a reason may quote anybody's bytes."""
    return reason.encode("utf-8", "backslashreplace").decode()
