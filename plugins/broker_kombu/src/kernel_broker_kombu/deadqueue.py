"""Dead letters as messages of a further queue, `<queue>.kw-dead`: the body is the whole envelope that died.

A queue can only be read by taking out of it. Each letter that is looked at goes back to the end, as a copy first, so
one look is one turn of the whole queue, and a crash may double one letter.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kernel_worker.types import DeadLetter

from .kombu_message import ATTEMPTS, DIED_AT, LETTER, REASON, number

AS_IT_IS = {"content_type": "application/octet-stream", "content_encoding": "binary"}
Publish = Callable[[str, bytes, dict[str, Any]], None]


def dead_queue(queue: str) -> str:
    """Name of the queue that holds another one's dead letters."""
    return f"{queue}.kw-dead"


class DeadQueue:
    """The dead letters that one channel can reach. Under the driver's lock."""

    def __init__(self, channel: Any, publish: Publish) -> None:
        self._channel = channel
        self._publish = publish

    def add(self, queue: str, raw: bytes, reason: str, attempts: int) -> None:
        """Keep a message."""
        headers = {REASON: reason, ATTEMPTS: attempts, DIED_AT: time.time(), LETTER: uuid.uuid4().hex}
        self._channel.queue_declare(dead_queue(queue))
        self._publish(dead_queue(queue), raw, {"headers": headers} | AS_IT_IS)

    def count(self, queue: str) -> int:
        """How many there are."""
        return int(self._channel.queue_declare(dead_queue(queue)).message_count or 0)

    def newest(self, queue: str, limit: int | None = None) -> list[DeadLetter]:
        """The newest, newest first; all with limit None."""
        found = [letter for letter, put_back in self._turn(queue) if put_back()]
        found.sort(key=lambda letter: letter.died_at, reverse=True)
        return found if limit is None else found[: max(0, limit)]

    def take_out(self, queue: str, ids: Sequence[str] | None, use: Callable[[DeadLetter], None]) -> int:
        """Use the letters with these ids (None: all), and keep the others; how many were used."""
        count = 0
        wanted = None if ids is None else set(ids)
        for letter, put_back in self._turn(queue):
            if wanted is None or letter.id in wanted:
                try:
                    use(letter)
                except Exception:  # it is out of its queue already: whatever is wrong, it must not be lost
                    put_back()
                    raise
                count += 1
            else:
                put_back()
        return count

    def _turn(self, queue: str) -> Iterator[tuple[DeadLetter, Callable[[], bool]]]:
        name = dead_queue(queue)
        for _ in range(self.count(queue)):
            message = self._channel.basic_get(name)
            if message is None:
                return
            headers = dict(message.headers or {})
            body = message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")

            def put_back(body: bytes = body, headers: Any = headers) -> bool:
                self._publish(name, body, {"headers": headers} | AS_IT_IS)
                return True

            died_at = headers.get(DIED_AT)
            yield (
                DeadLetter(
                    str(headers.get(LETTER) or message.delivery_tag),
                    queue,
                    body,
                    str(headers.get(REASON, "")),
                    float(died_at) if isinstance(died_at, int | float) else 0.0,
                    number(headers, ATTEMPTS),
                ),
                put_back,
            )
            self._channel.basic_ack(message.delivery_tag)
