"""Names and arguments of queues: Celery's, so that both kinds of workers share them, and ours beside them.

    <queue>                    the task queue, bound to its exchange as Celery does it
    kw.returned.<queue>        what workers gave back: they ask for it first, and after a while it is in <queue> again
    kw.delay.<queue>.<s>       parked messages: each expires after s seconds, back into <queue>
    kw.dead.<queue>            dead letters

A delay is made of steps: a message is parked for the longest step that is not too long, comes back, and is parked
for the rest by whoever fetches it. In a queue where all wait equally long nobody waits behind a longer one, and a
few dozen queues serve every time. Delay queues vanish when they have not been used for a while.

Giving back by basic.reject would be simpler. But the server marks such a message in the same way as one whose holder
died, and nobody could tell any more which of them has to be counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORTEST_STEP_S = 0.25
DELAY_STEPS_S = (
    SHORTEST_STEP_S,
    0.5,
    *(base * factor for base in (2.0**power for power in range(17)) for factor in (1.0, 1.5)),
)
"""Two per octave, up to 27 hours: a month is parked 28 times, an hour 8 times at most."""
_UNUSED_MS = 600_000
_RETURNED_MS = 15_000
_QUORUM = {"x-queue-type": "quorum"}
# Without these a quorum queue may lose what expires while the server fails over.
_SAFE_EXPIRY = {**_QUORUM, "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def delay_queue(queue: str, step_s: float) -> str:
    """Name of the queue that parks messages of another one for so many seconds."""
    return f"kw.delay.{queue}.{step_s:g}"


def dead_queue(queue: str) -> str:
    """Name of the queue with the dead letters of another one."""
    return f"kw.dead.{queue}"


def returned_queue(queue: str) -> str:
    """Name of the queue with what workers gave back of another one."""
    return f"kw.returned.{queue}"


def returned_arguments(queue: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a queue of returned messages.

    :param arguments: those of the task queue.
    """
    # Other consumers, such as Celery's workers, see the task queue only: that is where they go in the end.
    found = {"x-message-ttl": _RETURNED_MS, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
    if "x-max-priority" in arguments:
        found["x-max-priority"] = arguments["x-max-priority"]
    return found | (_SAFE_EXPIRY if is_quorum(arguments) else {})


def step_for(seconds: float) -> float:
    """The longest step that does not last longer than this; the shortest if all do."""
    best = SHORTEST_STEP_S
    for step in DELAY_STEPS_S:
        if step > seconds:
            break
        best = step
    return best


def delay_arguments(queue: str, step_s: float, *, quorum: bool) -> dict[str, Any]:
    """Arguments of a delay queue. They must not change: a queue that exists with others is refused."""
    ttl_ms = int(step_s * 1000)
    arguments: dict[str, Any] = {
        "x-message-ttl": ttl_ms,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        # Counted from the last declaration, and every publish declares: nothing is in it any more then.
        "x-expires": 2 * ttl_ms + _UNUSED_MS,
    }
    return arguments | _SAFE_EXPIRY if quorum else arguments


def dead_arguments(*, quorum: bool) -> dict[str, Any]:
    """Arguments of a queue of dead letters. Who looks at them takes them and puts them back: RabbitMQ 4 drops what was
    put back 20 times, where a quorum queue does not say otherwise. So the type is always named: its default may be that."""
    return _QUORUM | {"x-delivery-limit": 2**31 - 1} if quorum else {"x-queue-type": "classic"}


def is_quorum(arguments: Mapping[str, Any]) -> bool:
    """Whether a queue declared with these arguments is a quorum queue."""
    return arguments.get("x-queue-type") == "quorum"
