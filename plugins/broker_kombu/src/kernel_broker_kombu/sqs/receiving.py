"""Receiving from several queues at once, with long polls, for a caller who wants to be woken early.

A poll cannot be called off: one that goes on when its caller has returned counts against the next call's limit, and
what it brings is handed out by that. So there is never more reserved than was asked for.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .messages import Receipt
from .queues import BATCH, Queues

LONGEST_POLL_S = 5
SHORT_PAUSE_S = 0.1
"""Between short polls, where the caller has less than a second."""
GRACE_S = 2.0
"""Polls end by themselves before the caller's time is over; their answers still have to arrive."""
THREADS = 16


class Receiver:
    """Receives for one worker. `receive` on the fetch thread; `interrupt` on any."""

    def __init__(self, queues: Queues, lease_s: Callable[[], float]) -> None:
        self._queues = queues
        self._lease_s = lease_s
        self._changed = threading.Condition()
        self._pending: dict[Future[list[Receipt]], tuple[str, int]] = {}
        self._interrupted = False
        self._turn = 0
        self._full: set[str] = set()
        """Queues whose last poll brought all that it asked for: only these are worth several polls at once."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kw-sqs")

    def receive(self, names: Sequence[str], limit: int, timeout: float) -> list[Receipt]:
        """Reserve up to `limit` messages; returns as soon as there is one.

        :raises SqsAway, SqsRefused: a queue cannot be read, and nothing else has come.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._ask(names, limit, deadline - time.monotonic())
            got = self._gather(deadline + GRACE_S)
            if got or self._was_interrupted():
                return got
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return []
            with self._changed:
                if not self._interrupted and not self._pending:
                    self._changed.wait(min(left_s, SHORT_PAUSE_S))

    def interrupt(self) -> None:
        """Make a waiting `receive`, or else the next one, return at once."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def close(self, within_s: float) -> list[Receipt]:
        """End, and what polls bring that are still under way; later ones come back with their lease."""
        until = time.monotonic() + within_s
        left: list[Receipt] = []
        for future in list(self._pending):
            try:
                left += future.result(max(0.0, until - time.monotonic()))
            except (ConnectionError, TimeoutError):
                pass  # nothing was received, or it comes back
        self._pending.clear()
        self._threads.shutdown(wait=False)
        return left

    def _ask(self, names: Sequence[str], limit: int, left_s: float) -> None:
        """Begin polls for as many messages as are not asked for yet, each queue in turn."""
        room = limit - sum(count for _, count in self._pending.values())
        busy = {name for name, _ in self._pending.values()}
        idle = [name for name in names if name not in busy]
        self._turn += 1
        while room > 0 and idle and len(self._pending) < THREADS:
            name = idle.pop(self._turn % len(idle))
            share = max(1, room // (len(idle) + 1))
            # Several polls of one queue: that is how SQS gives more than ten in a round trip.
            most = THREADS // len(names) or 1 if name in self._full else 1
            for number in range(min(math.ceil(share / BATCH), most)):
                count = min(BATCH, share, room)
                if count <= 0:
                    break
                # One waits; what the others do not find now is not worth a request that waits, too.
                wait_s = 0 if number or left_s < 1 else min(LONGEST_POLL_S, int(left_s))
                future = self._threads.submit(self._poll, name, count, wait_s)
                self._pending[future] = (name, count)
                future.add_done_callback(self._done)
                room -= count
                share -= count

    def _poll(self, name: str, count: int, wait_s: int) -> list[Receipt]:
        lease_s = self._lease_s()
        answer: dict[str, Any] = self._queues.call(
            "receive_message",
            name,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=wait_s,
            VisibilityTimeout=math.ceil(lease_s),
            AttributeNames=["ApproximateReceiveCount", "MessageGroupId"],
            MessageAttributeNames=["All"],
        )
        ours_until = time.monotonic() + lease_s
        return [Receipt(name, message, ours_until) for message in answer.get("Messages") or ()]

    def _done(self, future: Future[list[Receipt]]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _gather(self, deadline: float) -> list[Receipt]:
        got: list[Receipt] = []
        problem: ConnectionError | None = None
        with self._changed:
            while True:
                for future in [future for future in self._pending if future.done()]:
                    name, count = self._pending.pop(future)
                    try:
                        receipts = future.result()
                        (self._full.add if len(receipts) == count else self._full.discard)(name)
                        got += receipts
                    except ConnectionError as error:
                        problem = error
                left_s = deadline - time.monotonic()
                if got or problem or self._interrupted or not self._pending or left_s <= 0:
                    break
                self._changed.wait(left_s)
        if problem is not None and not got:
            raise problem
        return got

    def _was_interrupted(self) -> bool:
        with self._changed:
            interrupted, self._interrupted = self._interrupted, False
            return interrupted
