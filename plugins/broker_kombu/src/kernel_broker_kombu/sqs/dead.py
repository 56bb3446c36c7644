"""Dead letters of an SQS queue: the messages of `<queue>.kw-dead`.

SQS shows messages only by handing them out, so who looks makes them invisible to others for a moment. Their ids are
SQS's own. Nothing is kept longer than 14 days.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from kernel_worker.types import DeadLetter

from .messages import DIED_AT, REASON, Receipt
from .queues import BATCH, Outgoing, Queues, decode
from .settings import dead_queue

LOOK_S = 30
"""How long a letter is invisible to others while it is looked at, at most."""
MOST = 10_000
"""Letters that are looked at."""


class DeadLetters:
    """The dead letters of all queues."""

    def __init__(self, queues: Queues, carry_out: Callable[[str, str, Sequence[Receipt], int], None]) -> None:
        self._queues = queues
        self._carry_out = carry_out
        """`carry_out(operation, queue, receipts, visibility)`: delete, or change visibility, ten in a call."""

    def newest(self, queue: str, limit: int | None) -> list[DeadLetter]:
        """The newest, newest first; all with limit None."""
        found = self._take(queue)
        self._release(queue, found)
        letters = sorted((_letter(queue, each) for each in found), key=lambda letter: letter.died_at, reverse=True)
        return letters if limit is None else letters[: max(0, limit)]

    def replay(self, queue: str, ids: Sequence[str] | None) -> int:
        """Put letters back into their queue, then delete them; a crash between the two doubles one."""
        chosen = self._choose(queue, ids)
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            self._queues.send(queue, [Outgoing(each.text, group=each.group) for each in batch])
            self._carry_out("delete", dead_queue(queue), batch, 0)
        return len(chosen)

    def drop(self, queue: str, ids: Sequence[str] | None) -> int:
        """Delete letters."""
        chosen = self._choose(queue, ids)
        self._carry_out("delete", dead_queue(queue), chosen, 0)
        return len(chosen)

    def _choose(self, queue: str, ids: Sequence[str] | None) -> list[Receipt]:
        found = self._take(queue)
        if ids is None:
            return found
        wanted = set(ids)
        self._release(queue, [each for each in found if each.id not in wanted])
        return [each for each in found if each.id in wanted]

    def _take(self, queue: str) -> list[Receipt]:
        found: dict[str, Receipt] = {}
        name = dead_queue(queue)
        while len(found) < MOST and self._queues.exists(name):
            answer = self._queues.call(
                "receive_message",
                name,
                MaxNumberOfMessages=BATCH,
                WaitTimeSeconds=0,
                VisibilityTimeout=LOOK_S,
                AttributeNames=["MessageGroupId"],
                MessageAttributeNames=["All"],
            )
            received = [Receipt(name, each, time.monotonic() + LOOK_S) for each in answer.get("Messages") or ()]
            if not received:
                break
            found |= {each.id: each for each in received}
        return list(found.values())

    def _release(self, queue: str, receipts: Sequence[Receipt]) -> None:
        self._carry_out("release", dead_queue(queue), receipts, 0)


def _letter(queue: str, receipt: Receipt) -> DeadLetter:
    try:
        reason = str(json.loads(receipt.attributes[REASON]["StringValue"]))
    except (KeyError, TypeError, ValueError):  # moved here by something else
        reason = ""
    return DeadLetter(receipt.id, queue, decode(receipt.text), reason, receipt.number(DIED_AT), receipt.attempts)
