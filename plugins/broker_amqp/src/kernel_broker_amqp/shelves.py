"""What is done to queues as a whole: declare, count, purge, list the dead. One call at a time, on one relay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappush, heappushpop
from itertools import count
from typing import Any

from kernel_worker.types import DeadLetter, QueueSpec

from . import content, delayed_delivery, topology
from .errors import NotRouted
from .relay import Outgoing, Relay
from .wire import Received


def declare(relay: Relay, queues: Sequence[QueueSpec], known: dict[str, Mapping[str, Any]]) -> None:
    """Make queues and their bindings exist, named as Celery names them, and the queues for what is given back.

    A queue for which nothing is asked may be there with any arguments: it is used as it is.

    :param known: gets the arguments of each queue, as far as they can be found out.
    :raises AmqpRefused: it is there with other arguments than asked for.
    """
    names = [spec.name for spec in queues]
    sizes = relay.sizes([*names, *map(topology.returned_queue, names)])
    there = {name: size is not None for name, size in zip(names, sizes, strict=False)}
    has_returned = {name: size is not None for name, size in zip(names, sizes[len(names) :], strict=True)}
    for spec in queues:
        arguments = dict(spec.arguments)
        if arguments or not there[spec.name]:
            relay.declare_queue(spec.name, arguments)
        if not arguments and relay.is_quorum(spec.name):  # it was there, or the server's default type is that
            arguments = {"x-queue-type": "quorum"}
        known[spec.name] = arguments
        exchange, key = spec.exchange or spec.name, spec.routing_key or spec.name
        relay.bind(spec.name, exchange, spec.exchange_type, key)
        if delayed_delivery.can_delay(spec.exchange_type, arguments):
            delayed_delivery.declare(relay, relay.addresses.delayed_queue_type)
            delayed_delivery.bind(relay, spec.name, exchange, key)
        if not has_returned[spec.name]:
            relay.declare_queue(topology.returned_queue(spec.name), topology.returned_arguments(spec.name, arguments))


def publish(relay: Relay, queue: str, raw: bytes, payload: bytes | None, priority: int) -> None:
    """Append one envelope to a queue, which is made if it is missing."""
    header, body = content.from_envelope(raw, payload, priority)
    message = [Outgoing("", queue, header, body)]
    try:
        relay.publish(message)
    except NotRouted:
        relay.declare_queue(queue, {})
        relay.publish(message)


def counts(relay: Relay, queue: str) -> tuple[int, int, int]:
    """Messages that wait, are parked, are dead."""
    names = [queue, topology.returned_queue(queue), topology.dead_queue(queue), *_delay_queues(queue)]
    waiting, returned, dead, *parked = (size or 0 for size in relay.sizes(names))
    return waiting + returned, sum(parked), dead


def purge(relay: Relay, queue: str) -> int:
    """Delete what waits in a queue and what is parked for it; how many."""
    names = [queue, topology.returned_queue(queue), *_delay_queues(queue)]
    return sum(relay.purge(name) for name, size in zip(names, relay.sizes(names), strict=True) if size is not None)


def dead_letters(relay: Relay, queue: str, limit: int) -> list[DeadLetter]:
    """The newest dead letters, newest first. AMQP reads from the front, so all are read, and put back."""
    newest: list[tuple[float, int, Received]] = []
    serial = count()

    def judge(received: Received) -> bool:
        entry = (_died_at(content.read(received.header, received.body)), next(serial), received)
        if len(newest) < limit:
            heappush(newest, entry)
        else:
            heappushpop(newest, entry)
        return False

    relay.sift(topology.dead_queue(queue), judge, lambda: limit < 1)
    return [_letter(queue, content.read(each.header, each.body)) for _, _, each in sorted(newest, reverse=True)]


def dead_letter(relay: Relay, queue: str, id: str) -> DeadLetter | None:
    """The dead letter of this id."""
    found: list[DeadLetter] = []

    def judge(received: Received) -> bool:
        message = content.read(received.header, received.body)
        if message.own.get(content.LETTER) == id:
            found.append(_letter(queue, message))
        return False

    relay.sift(topology.dead_queue(queue), judge, lambda: bool(found))
    return found[0] if found else None


def replay_dead(relay: Relay, queue: str, ids: Sequence[str] | None) -> int:
    """Publish dead letters to their queue, which is made if it is missing; how many."""
    if not relay.exists(queue):
        relay.declare_queue(queue, {})
    return _sift_dead(relay, queue, ids, lambda found: Outgoing("", queue, found.as_sent(), found.body))


def drop_dead(relay: Relay, queue: str, ids: Sequence[str] | None) -> int:
    """Delete dead letters; how many."""
    return _sift_dead(relay, queue, ids, lambda found: True)


def _sift_dead(
    relay: Relay, queue: str, ids: Sequence[str] | None, verdict: Callable[[content.Content], Outgoing | bool]
) -> int:
    wanted = None if ids is None else set(ids)
    left = None if wanted is None else len(wanted)

    def judge(received: Received) -> Outgoing | bool:
        nonlocal left
        found = content.read(received.header, received.body)
        if wanted is not None and found.own.get(content.LETTER) not in wanted:
            return False
        if left is None:
            # All means those that are there now: what is replayed may die again meanwhile. Asked for the size of a quorum
            # queue, a busy server says 0; what it says with a message is exact.
            left = 1 + int.from_bytes(received.arguments[-4:], "big")
        left -= 1
        return verdict(found)

    return relay.sift(topology.dead_queue(queue), judge, lambda: left is not None and left < 1)


def _died_at(found: content.Content) -> float:
    value = found.own.get(content.DIED_AT)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _letter(queue: str, found: content.Content) -> DeadLetter:
    own = found.own
    raw, payload = found.body, None
    if found.error is None:
        (raw, _), payload = found.envelope("", queue), found.body
    return DeadLetter(
        id=str(own.get(content.LETTER, "")),
        queue=queue,
        raw=raw,
        reason=str(own.get(content.REASON, "")),
        died_at=_died_at(found),
        attempts=content.attempts_of(found),
        payload=payload,
    )


def _delay_queues(queue: str) -> list[str]:
    return [topology.delay_queue(queue, step) for step in topology.DELAY_STEPS_S]
