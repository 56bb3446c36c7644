"""What SQS hands over and what becomes of it: receipts, attributes, copies."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from kernel_worker.types import Delivery

from ..envelope import read_envelope
from .queues import DELAY_S, Outgoing, decode
from .settings import FIFO

ATTEMPTS, RETURNS, RETURNED, UNTIL, REASON, DIED_AT = (
    "kw-attempts",
    "kw-returns",
    "kw-returned",
    "kw-until",
    "kw-reason",
    "kw-died-at",
)
REASON_LENGTH = 2_000


class Receipt:
    """A received message, and how long it is ours.

    :ivar ours_until: `time.monotonic()`. SQS takes a late receipt for a good one, so nothing but this clock
        keeps us from deleting what another holder has by now.
    :ivar copy: what was begun to be sent in its place, so that a repeated settlement does not send it twice.
    """

    __slots__ = ("attributes", "copy", "group", "handle", "id", "is_settled", "ours_until", "queue", "received", "text")

    def __init__(self, queue: str, message: Mapping[str, Any], ours_until: float) -> None:
        system = message.get("Attributes") or {}
        self.queue = queue
        self.id = str(message["MessageId"])
        self.handle = str(message["ReceiptHandle"])
        self.text = str(message.get("Body", ""))
        self.attributes: dict[str, Any] = dict(message.get("MessageAttributes") or {})
        self.group = str(system.get("MessageGroupId") or "default")
        self.received = int(system.get("ApproximateReceiveCount") or 1)
        self.ours_until = ours_until
        self.copy: Outgoing | None = None
        self.is_settled = False

    @property
    def is_ours(self) -> bool:
        """Whether there is something left to settle."""
        return not self.is_settled and time.monotonic() < self.ours_until

    @property
    def attempts(self) -> int:
        """Deliveries that were counted."""
        return int(self.number(ATTEMPTS))

    def number(self, name: str) -> float:
        """A number among the attributes; anybody may have written it."""
        try:
            found = float(self.attributes[name]["StringValue"])
            return found if 0 <= found < 1e12 else 0.0
        except (KeyError, TypeError, ValueError):
            return 0.0

    def delivery(self) -> Delivery:
        """What the kernel gets to see."""
        raw = decode(self.text)
        headers, properties, error = read_envelope(raw)
        # In a FIFO queue a message that is given back keeps its place, and so SQS's count.
        recovered = self.received > 1 and not self.queue.endswith(FIFO)
        return Delivery(
            self.queue,
            raw,
            headers,
            self,
            properties,
            attempts=self.attempts,
            redelivered=self.received > 1 or RETURNED in self.attributes,
            error=error,
            recovered=recovered,
            returns=int(self.number(RETURNS)),
        )

    def again(self, *, count: bool) -> Outgoing:
        """A copy for its own queue."""
        return self._copy({RETURNED: "1", ATTEMPTS: self.attempts + count})

    def later(self, until: float, *, count: bool) -> Outgoing:
        """A copy that comes at a time; count: its task was unknown."""
        until = 0.0 if math.isnan(until) else min(max(until, 0.0), 1e11)
        delay_s = until - time.time()
        more = {RETURNS: int(self.number(RETURNS)) + count}
        copy = self._copy(more | ({UNTIL: until} if delay_s > DELAY_S else {}), without=UNTIL)
        copy.delay_s = min(delay_s, float(DELAY_S))
        return copy

    def letter(self, reason: str, *, count: bool) -> Outgoing:
        """A copy for the dead letters."""
        # As JSON: SQS takes no control characters, and a reason may quote anybody's bytes.
        short = json.dumps(reason[:REASON_LENGTH])
        return self._copy({ATTEMPTS: self.attempts + count, REASON: short, DIED_AT: time.time()}, without=RETURNED)

    def _copy(self, more: Mapping[str, Any], *, without: str = "") -> Outgoing:
        if self.copy is None:
            attributes = {name: value for name, value in self.attributes.items() if name != without}
            for name, value in more.items():
                attributes[name] = {
                    "DataType": "String" if isinstance(value, str) else "Number",
                    "StringValue": value if isinstance(value, str) else repr(value),
                }
            self.copy = Outgoing(self.text, attributes, group=self.group)
        return self.copy
