"""Reserve messages: consume for as long as a fetch lasts, with no more credit than it asks for.

A consumer that stays open while the kernel wants nothing would take messages that others could run, and would get
its own returned ones again. So a fetch opens consumers with its limit as their prefetch count and cancels them when
it has something: what comes before the server's answer belongs to the batch. A fetch that found nothing leaves them
open for the next one; `rest` closes them when there is none.

`fetch` on the fetch thread. What the link delivers is taken in by whoever reads it, under its `reading` lock.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kernel_worker.types import Delivery

from . import content, wire
from .errors import AmqpUnavailable
from .interrupt import Interrupt
from .link import Link
from .outstanding import Outstanding
from .wire import Received

CHANNEL = 1
_TAG = struct.Struct(">QB")
_EARLY_S = 0.02  # a message that comes back so little before its time is delivered
_MOST_CREDIT = 65_535  # 16 bits on the wire


@dataclass(slots=True)
class Receipt:
    """Where a delivery came from, and what is needed to publish it again."""

    channel: Channel
    tag: int
    content: content.Content


class Channel:
    """The channel of one connection that delivers, and what it has delivered."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.outstanding = Outstanding()
        self.inbox: deque[Delivery] = deque()
        self.credit: dict[str, int] = {}  # consumer tag to what it may still get; open consumers only
        self.cancelled: set[str] = set()  # consumer tags whose end the server has confirmed
        self.syncs_sent = self.syncs_seen = 0
        self.changed = threading.Condition()


Park = Callable[[Sequence[tuple[str, content.Content, float]]], None]
"""Parks messages (queue, message, due) durably. Raises AmqpUnavailable or AmqpRefused."""


class Intake:
    """The fetch side of one broker. `attach` gives it a new connection after each loss.

    :param largest: bytes of the largest body that is delivered as a task.
    :param park: for messages that come before their time.
    :param grace_s: how long to wait for messages when there is no time to wait: quorum queues may answer a cancel
        before they deliver.
    """

    def __init__(
        self, queues: Iterable[str], largest: int, interrupt: Interrupt, park: Park, *, grace_s: float = 0.0
    ) -> None:
        self._queues = tuple(dict.fromkeys(queues))
        self._largest = largest
        self._interrupt = interrupt
        self._park = park
        self._grace_s = grace_s
        self._serial = 0
        self._turn = 0
        self._early: list[tuple[int, tuple[str, content.Content, float]]] = []
        self.channel: Channel | None = None
        self.fetched_at = 0.0  # time.monotonic() at the end of the last fetch

    def attach(self, link: Link) -> None:
        """Use a new connection; what the old one delivered comes again. Raises as links do."""
        link.open_channel(CHANNEL)
        self._early = []
        self.channel = Channel(link)

    def current(self) -> Channel:
        """:raises AmqpUnavailable: there is no connection."""
        if self.channel is None:
            raise AmqpUnavailable("not connected")
        return self.channel

    # ------------------------------------------------------------------ fetching

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """See `Broker.fetch`."""
        channel = self.current()
        deadline = time.monotonic() + timeout
        with channel.link.reading:
            try:
                return self._fetch(channel, limit, deadline)
            finally:
                self.fetched_at = time.monotonic()

    def _fetch(self, channel: Channel, limit: int, deadline: float) -> list[Delivery]:
        if limit < 1 or self._interrupt.take():
            self._end_consumers(channel)
            return self._collect(channel, limit)
        is_first = True
        while not channel.inbox:
            self._open_consumers(channel, limit)
            left = deadline - time.monotonic()
            if left <= 0 and not is_first:
                if not channel.inbox:
                    return []
                break
            # Without time to wait the answer to "is there something" still takes a round trip: the cancel's.
            if left <= 0:
                until = time.monotonic() + self._grace_s
                while not channel.inbox and time.monotonic() < until:
                    self._take_in(channel, channel.link.receive(until - time.monotonic()))
                self._end_consumers(channel)
                self._repark(channel)
                return self._collect(channel, limit)
            is_first = False
            self._take_in(channel, channel.link.receive(left, self._interrupt.descriptor))
            self._repark(channel)
            if self._interrupt.take():
                break
        self._end_consumers(channel)
        self._repark(channel)
        return self._collect(channel, limit)

    def _collect(self, channel: Channel, limit: int) -> list[Delivery]:
        return [channel.inbox.popleft() for _ in range(min(len(channel.inbox), max(limit, 0)))]

    def _open_consumers(self, channel: Channel, limit: int) -> None:
        """Have consumers whose credit is the limit, shared among the queues."""
        share = min(max(1, limit // len(self._queues)), _MOST_CREDIT)
        open_credit = channel.credit.values()
        if open_credit and max(open_credit) <= share and min(open_credit) > 0:
            return
        self._end_consumers(channel)
        requests = [wire.qos(CHANNEL, share)]
        self._turn += 1
        turn = self._turn % len(self._queues)
        for index in (*range(turn, len(self._queues)), *range(turn)):
            self._serial += 1
            tag = f"kw.{self._serial}.{index}"
            requests.append(wire.consume(CHANNEL, self._queues[index], tag))
            channel.credit[tag] = share
        channel.link.send(b"".join(requests))

    def _end_consumers(self, channel: Channel) -> None:
        """Close the consumers; what the server had sent to them is in the inbox afterwards."""
        if not channel.credit:
            return
        waited = list(channel.credit)
        channel.link.send(b"".join(wire.cancel(CHANNEL, tag) for tag in waited))
        deadline = time.monotonic() + channel.link.server.deadline_s
        while not channel.cancelled.issuperset(waited):
            received = channel.link.receive(deadline - time.monotonic())
            self._take_in(channel, received)
            if not received and time.monotonic() >= deadline:
                raise channel.link.fail("no answer to a cancel in time")
        channel.credit.clear()
        channel.cancelled.clear()

    def rest(self) -> None:
        """Close consumers that a fetch left open, and give back what they got. Settle thread.

        For a kernel that has stopped fetching. Does nothing while a fetch is under way.
        """
        channel = self.current()
        if not (channel.credit or channel.inbox) or not channel.link.reading.acquire(blocking=False):
            return
        try:
            self._end_consumers(channel)
            self._repark(channel)
            tags = [delivery.receipt.tag for delivery in channel.inbox]
            channel.inbox.clear()
        finally:
            channel.link.reading.release()
        channel.outstanding.settle(tags)
        channel.link.send(b"".join(wire.reject(CHANNEL, tag) for tag in tags))

    def wait_for_sync(self, channel: Channel, number: int) -> None:
        """Wait until the server has handled what was sent before the sync of this number. Settle thread.

        Reads the answer itself, unless a fetch is reading.
        """
        link = channel.link
        deadline = time.monotonic() + link.server.deadline_s
        while channel.syncs_seen < number:
            if link.reading.acquire(blocking=False):
                try:
                    if channel.syncs_seen < number:
                        self._take_in(channel, link.receive(deadline - time.monotonic()))
                finally:
                    link.reading.release()
            else:
                with channel.changed:
                    # Short, because the fetch may have ended before it saw the answer.
                    channel.changed.wait_for(lambda: channel.syncs_seen >= number, 0.02)
            if time.monotonic() >= deadline:
                raise link.fail("no answer in time")

    # ------------------------------------------------------------------ taking in

    def _take_in(self, channel: Channel, received: Iterable[Received]) -> None:
        for each in received:
            if each.method == wire.BASIC_DELIVER:
                self._deliver(channel, each)
            elif each.method == wire.BASIC_CANCEL_OK:
                channel.cancelled.add(wire.read_short(each.arguments, 0)[0])
            elif each.method == wire.CONFIRM_SELECT_OK:
                channel.syncs_seen += 1
                with channel.changed:
                    channel.changed.notify_all()
            elif each.method == wire.BASIC_CANCEL:
                queue = self._queue_of(wire.read_short(each.arguments, 0)[0])
                raise channel.link.fail(f"the server ended consuming: queue {queue!r} was deleted or moved")
            elif each.method == wire.CHANNEL_CLOSE:
                raise channel.link.fail(f"channel closed: {channel.link.channel_closed(each)}")

    def _queue_of(self, consumer: str) -> str:
        return self._queues[int(consumer.rpartition(".")[2])]

    def _deliver(self, channel: Channel, received: Received) -> None:
        arguments = received.arguments
        consumer, at = wire.read_short(arguments, 0)
        tag, redelivered = _TAG.unpack_from(arguments, at)
        exchange, at = wire.read_short(arguments, at + 9)
        routing_key, _ = wire.read_short(arguments, at)
        queue = self._queue_of(consumer)
        if consumer in channel.credit:
            channel.credit[consumer] -= 1
        channel.outstanding.add(tag, queue)
        found = content.read(received.header, received.body)
        due = content.due_of(found)
        if due > time.time() + _EARLY_S:
            self._early.append((tag, (queue, found, due)))
            return
        receipt = Receipt(channel, tag, found)
        channel.inbox.append(self._delivery(queue, receipt, exchange, routing_key, bool(redelivered & 1)))

    def _delivery(self, queue: str, receipt: Receipt, exchange: str, routing_key: str, redelivered: bool) -> Delivery:
        found = receipt.content
        error = found.error
        raw: bytes = b""
        properties: dict[str, Any] = {}
        try:
            raw, properties = found.envelope(exchange, routing_key)
        except (TypeError, ValueError, RecursionError) as failure:
            error = error or f"headers that JSON cannot hold: {failure}"
        if len(found.body) + len(raw) > self._largest:
            error = f"too large: {len(found.body)} bytes, at most {self._largest} are delivered"
        headers = found.headers if error is None else {}
        attempts = content.attempts_of(found)
        return Delivery(queue, raw, headers, receipt, properties, attempts, redelivered, found.body, error)

    def _repark(self, channel: Channel) -> None:
        """Park what came before its time for the rest of it."""
        if not self._early:
            return
        early, self._early = self._early, []
        self._park([message for _, message in early])
        tags = [tag for tag, _ in early]
        channel.outstanding.settle(tags)
        channel.link.send(b"".join(wire.ack(CHANNEL, tag) for tag in tags))

    # ------------------------------------------------------------------ counting

    def held(self, queue: str) -> tuple[int, int]:
        """Messages of a queue that were delivered and are not settled, and those that no fetch has returned yet."""
        channel = self.channel
        if channel is None:
            return 0, 0
        unread = Counter(delivery.queue for delivery in tuple(channel.inbox))[queue]
        return channel.outstanding.count()[queue] - unread, unread
