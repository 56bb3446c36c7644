"""What is done to queues as a whole: declare, count, purge, list the dead. One call at a time, on one relay."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kernel_worker.types import DeadLetter, QueueSpec

from . import content, topology
from .errors import NotRouted
from .relay import Outgoing, Relay

_LISTED = 10_000  # of more dead letters in one queue, the newest are not looked for


def declare(relay: Relay, queues: Sequence[QueueSpec]) -> None:
    """Make queues and their bindings exist, named as Celery names them.

    A queue for which nothing is asked may be there with any arguments: it is used as it is.

    :raises AmqpRefused: it is there with other arguments than asked for.
    """
    there = dict(zip((spec.name for spec in queues), relay.sizes([spec.name for spec in queues]), strict=True))
    for spec in queues:
        if spec.arguments or there[spec.name] is None:
            relay.declare_queue(spec.name, spec.arguments)
        relay.bind(spec.name, spec.exchange or spec.name, spec.exchange_type, spec.routing_key or spec.name)


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
    names = [queue, topology.dead_queue(queue), *_delay_queues(queue)]
    waiting, dead, *parked = (size or 0 for size in relay.sizes(names))
    return waiting, sum(parked), dead


def purge(relay: Relay, queue: str) -> int:
    """Delete what waits in a queue and what is parked for it; how many."""
    names = [queue, *_delay_queues(queue)]
    return sum(relay.purge(name) for name, size in zip(names, relay.sizes(names), strict=True) if size is not None)


def dead_letters(relay: Relay, queue: str, limit: int) -> list[DeadLetter]:
    """The newest dead letters, newest first. AMQP reads from the front, so all are read, and put back."""
    name = topology.dead_queue(queue)
    count = relay.sizes([name])[0]
    if not count:
        return []
    newest = deque(relay.peek(name, min(count, _LISTED)), maxlen=max(limit, 0))
    return [_letter(queue, content.read(each.header, each.body)) for each in reversed(newest)]


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
        died_at=float(own.get(content.DIED_AT) or 0.0),
        attempts=content.attempts_of(found),
        payload=payload,
    )


def _delay_queues(queue: str) -> list[str]:
    return [topology.delay_queue(queue, step) for step in topology.DELAY_STEPS_S]
