"""One consuming connection and its channels: a channel for each queue, so that what ends one leaves the others alone.

A server ends a channel for one queue's sake: it was deleted, its consumer took too long to acknowledge. What was held
over other channels stays held.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from kernel_worker.types import Delivery

from . import content, wire
from .link import Link
from .outstanding import Outstanding
from .wire import Received


@dataclass(slots=True)
class Receipt:
    """Where a delivery came from, and what is needed to publish it again."""

    lane: Lane
    tag: int
    content: content.Content
    recovered: bool = False


class Lane:
    """The channel of one queue.

    :ivar consumer: tag of the consumer that is open; "" when there is none.
    :ivar credit: what that consumer may still get.
    :ivar asked: basic.get requests that are not answered yet.
    :ivar is_empty: whether one of the last requests found nothing.
    :ivar is_open: False for good once the server has closed the channel. Changed under the session's `ending` lock.
    """

    __slots__ = ("asked", "consumer", "credit", "is_empty", "is_open", "number", "outstanding", "queue")

    def __init__(self, number: int, queue: str) -> None:
        self.number = number
        self.queue = queue
        self.outstanding: Outstanding[Receipt] = Outstanding()
        self.consumer = ""
        self.credit = 0
        self.asked = 0
        self.is_empty = False
        self.is_open = True


class Session:
    """A connection that delivers, and what it has delivered.

    :ivar inbox: delivered, and returned by no fetch yet.
    :ivar lost: queues that cannot be consumed just now, and why.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.lanes: dict[int, Lane] = {}
        self.of_queue: dict[str, Lane] = {}
        self.inbox: deque[Delivery] = deque()
        self.lost: dict[str, str] = {}
        self.ending = threading.Lock()

    def add(self, queue: str) -> Lane:
        """A channel for a queue, for the caller to open. With the link's `reading` held, as everything but
        `acknowledge`."""
        number = next(number for number in range(1, 65_536) if number not in self.lanes)
        lane = Lane(number, queue)
        self.lanes[number] = lane
        self.of_queue[queue] = lane
        return lane

    def end(self, lane: Lane, closing: Received) -> None:
        """The server has closed a channel: answer, and forget what came over it; it is delivered again."""
        with self.ending:  # an acknowledgement behind this answer would end the whole connection
            lane.is_open = False
            error = self.link.channel_closed(closing)
        self.lanes.pop(lane.number, None)
        if self.of_queue.get(lane.queue) is lane:
            del self.of_queue[lane.queue]
            self.lost[lane.queue] = str(error)
        for delivery in [each for each in self.inbox if each.receipt.lane is lane]:
            self.inbox.remove(delivery)

    def keep_only(self, queues: Collection[str]) -> None:
        """Give up the channels of other queues, once nothing is held over them any more."""
        for queue in [queue for queue in self.of_queue if queue not in queues]:
            del self.of_queue[queue]
        kept = set(self.of_queue.values())
        held = {delivery.receipt.lane for delivery in self.inbox}
        for lane in list(self.lanes.values()):
            if lane.is_open and lane not in kept and lane not in held and not lane.outstanding and not lane.consumer:
                with self.ending:
                    lane.is_open = False
                self.link.send(wire.frame(lane.number, wire.CHANNEL_CLOSE, wire.GOOD_BYE))

    def forget(self, lane: Lane) -> None:
        """A channel that was given up is closed: its number is free."""
        self.lanes.pop(lane.number, None)

    def holds(self, receipt: Receipt) -> bool:
        """Whether a delivery came over this connection, over a channel that is still open, and is not settled."""
        lane = receipt.lane
        return self.lanes.get(lane.number) is lane and receipt.tag in lane.outstanding

    def held(self) -> list[Receipt]:
        """All that is not settled."""
        return [receipt for lane in list(self.lanes.values()) for receipt in lane.outstanding.all()]

    def acknowledge(self, receipts: Iterable[Receipt]) -> None:
        """Acknowledge, several with one frame where that is possible. Any thread; what is no longer held is skipped.

        :raises AmqpUnavailable: the connection is lost.
        """
        tags: dict[Lane, list[int]] = defaultdict(list)
        for receipt in receipts:
            tags[receipt.lane].append(receipt.tag)
        with self.ending:
            parts: list[bytes] = []
            for lane, finished in tags.items():
                if lane.is_open and self.lanes.get(lane.number) is lane:
                    parts += _acks(lane, sorted(finished))
            if parts:
                self.link.send(b"".join(parts))


def _acks(lane: Lane, tags: list[int]) -> list[bytes]:
    lowest = lane.outstanding.settle(tags)
    together = [tag for tag in tags if tag < lowest]
    parts = [wire.ack(lane.number, together[-1], multiple=True)] if together else []
    return parts + [wire.ack(lane.number, tag) for tag in tags[len(together) :]]
