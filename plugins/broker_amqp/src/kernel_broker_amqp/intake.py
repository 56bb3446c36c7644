"""Reserve messages: consume for as long as a fetch lasts, with no more credit than it asks for.

A consumer that stays open while the kernel wants nothing would take messages that others could run, and would get
its own returned ones again. So a fetch opens consumers with its limit as their prefetch count and cancels them when
it has something: what comes before the server's answer belongs to the batch. A fetch that found nothing leaves them
open for the next one; `rest` closes them when there is none.

What workers gave back lies in a queue beside each queue (see topology) and is asked for first.

`fetch` on the fetch thread. What the link delivers is taken in by whoever reads it, under its `reading` lock.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from kernel_worker.types import Delivery, QueueSpec

from . import content, topology, wire
from .errors import AmqpRefused, AmqpUnavailable
from .interrupt import Interrupt
from .lane import Lane, Receipt, Session
from .link import Link
from .wire import Received

log = logging.getLogger(__name__)

_TAG = struct.Struct(">QB")
_EARLY_S = 0.02  # a message that comes back so little before its time is delivered
_MOST_CREDIT = 65_535  # 16 bits on the wire
_LOOK_EVERY_S = 0.05  # for what was given back, while fetches follow each other
_LOOK_IDLE_S = 0.25  # the same, while a fetch waits
_ASKED_AT_ONCE = 128
_MOVE_S = 1.0  # a message that came back waits at most this long for the end of its former delivery

Early = tuple[str, content.Content, float]
Park = Callable[[Sequence[Early]], None]
"""Parks messages (queue, message, due) durably. Raises AmqpUnavailable or AmqpRefused."""
Declare = Callable[[Sequence[QueueSpec]], None]
"""Makes queues exist. Raises AmqpUnavailable or AmqpRefused."""


class Intake:
    """The fetch side of one broker. `attach` gives it a new connection after each loss.

    :param largest: bytes of the largest body that is delivered as a task.
    :param park: for messages that come before their time.
    :param declare: for queues that somebody deleted.
    :ivar moving: held from publishing what goes elsewhere to its acknowledgement. A message that was given back may come
        again in between: were it begun and ended us, it would be there twice.
    :ivar grace_s: how long to wait for messages when there is no time to wait: quorum queues may answer a cancel
        before they deliver.
    """

    def __init__(
        self, specs: Iterable[QueueSpec], largest: int, interrupt: Interrupt, park: Park, declare: Declare
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._largest = largest
        self._interrupt = interrupt
        self._park = park
        self._declare = declare
        self._serial = 0
        self._early: list[tuple[Receipt, Early]] = []
        self._look_at = 0.0
        self.moving = threading.Lock()
        self.grace_s = 0.0
        self.session: Session | None = None
        self.fetched_at = 0.0  # time.monotonic() at the end of the last fetch

    def attach(self, link: Link) -> None:
        """Use a new connection; what the old one delivered comes again."""
        self._early = []
        self._look_at = 0.0
        self.session = Session(link)

    def current(self) -> Session:
        """:raises AmqpUnavailable: there is no connection."""
        if self.session is None:
            raise AmqpUnavailable("not connected")
        return self.session

    def use(self, specs: Iterable[QueueSpec]) -> None:
        """Consume these queues from the next fetch on. Any thread."""
        self._specs = {spec.name: spec for spec in specs}

    def look_soon(self, *, at_once: bool) -> None:
        """Something was given back: the next fetch asks for it first. Any thread.

        :param at_once: the kernel waits for it: a fetch that waits ends, with what it has.
        """
        self._look_at = 0.0
        if at_once:
            self._interrupt.set()

    # ------------------------------------------------------------------ fetching

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """See `Broker.fetch`."""
        session = self.current()
        deadline = time.monotonic() + timeout
        with session.link.reading:
            try:
                if limit < 1 or self._interrupt.take():
                    self._end_consumers(session)
                else:
                    self._wait(session, limit, deadline)
                self._repark(session)
                found = [session.inbox.popleft() for _ in range(min(len(session.inbox), max(limit, 0)))]
            finally:
                self.fetched_at = time.monotonic()
        if any(each.redelivered for each in found) and self.moving.acquire(timeout=_MOVE_S):
            self.moving.release()
        return found

    def _wait(self, session: Session, limit: int, deadline: float) -> None:
        """Take in at least one message until the deadline. Consumers stay open only if there was none in time."""
        mended: list[str] = []
        while not session.inbox:
            self._open_lanes(session, mended)
            self._look_at_returned(session, limit)
            if session.inbox:
                break
            left = deadline - time.monotonic()
            if left <= 0 and self._are_open(session, limit):
                return
            self._open_consumers(session, limit)
            if left <= 0:
                # Without time to wait the answer to "is there something" still takes a round trip: the cancel's.
                self._linger(session)
                break
            wait_s = min(left, _LOOK_IDLE_S)
            self._take_in(session, session.link.receive(wait_s, self._interrupt.descriptor))
            self._repark(session)
            if self._interrupt.take():
                break
        self._end_consumers(session)

    def _linger(self, session: Session) -> None:
        until = time.monotonic() + self.grace_s
        while not session.inbox and time.monotonic() < until:
            self._take_in(session, session.link.receive(until - time.monotonic()))

    # ------------------------------------------------------------------ channels and consumers

    def _open_lanes(self, session: Session, mended: list[str]) -> None:
        """Have a channel for each queue that is to be consumed, and give up those of others.

        :param mended: queues that were declared again during this fetch: a third loss of one is an error.
        :raises AmqpRefused: a queue cannot be consumed.
        """
        specs = self._specs
        if not session.lost and len(session.lanes) == len(specs) and session.of_queue.keys() == specs.keys():
            return
        for queue, reason in list(session.lost.items()):
            del session.lost[queue]
            if queue not in specs:
                continue
            if mended.count(queue) >= 2:  # one loss may be told twice: by its consumer, and when it is opened again
                raise AmqpRefused(f"queue {queue!r} cannot be consumed: {reason}")
            mended.append(queue)
            log.warning(
                "queue %s: %s; it is declared and consumed again",
                queue,
                reason,
                extra={"action": "queue_lost", "queue": queue, "reason": reason},
            )
            self._declare([specs[queue]])
        session.keep_only(specs)
        for queue in [queue for queue in specs if queue not in session.of_queue]:
            lane = session.add(queue)
            session.link.send(wire.frame(lane.number, wire.CHANNEL_OPEN, b"\0"))
            session.link.wait_for(
                lane.number, wire.CHANNEL_OPEN_OK, lambda received: self._take_in(session, [received])
            )

    def _are_open(self, session: Session, limit: int) -> bool:
        """Whether every queue has a consumer that may bring something, and not too much."""
        share = self._share(session, limit)
        lanes = session.of_queue.values()
        return all(lane.consumer and 0 < lane.credit <= share for lane in lanes) and bool(lanes)

    def _share(self, session: Session, limit: int) -> int:
        return min(max(1, limit // max(1, len(session.of_queue))), _MOST_CREDIT)

    def _open_consumers(self, session: Session, limit: int) -> None:
        """Have consumers whose credit is the limit, shared among the queues."""
        if self._are_open(session, limit):
            return
        self._end_consumers(session)
        share = self._share(session, limit)
        requests: list[bytes] = []
        lanes = list(session.of_queue.values())
        self._serial += 1
        turn = self._serial % max(1, len(lanes))
        for lane in (*lanes[turn:], *lanes[:turn]):
            lane.consumer, lane.credit = f"kw.{self._serial}", share
            requests += (wire.qos(lane.number, share), wire.consume(lane.number, lane.queue, lane.consumer))
        if requests:
            session.link.send(b"".join(requests))

    def _end_consumers(self, session: Session) -> None:
        """Close the consumers; what the server had sent to them is in the inbox afterwards."""
        waited = [lane for lane in session.lanes.values() if lane.consumer]
        if not waited:
            return
        session.link.send(b"".join(wire.cancel(lane.number, lane.consumer) for lane in waited))
        self._take_in_until(session, lambda: not any(lane.consumer and lane.is_open for lane in waited), "a cancel")

    def _take_in_until(self, session: Session, is_done: Callable[[], bool], what: str) -> None:
        link = session.link
        deadline = time.monotonic() + link.server.deadline_s
        while not is_done():
            received = link.receive(deadline - time.monotonic())
            self._take_in(session, received)
            if not received and time.monotonic() >= deadline:
                raise link.fail(f"no answer to {what} in time")

    def _look_at_returned(self, session: Session, limit: int) -> None:
        """Take what was given back. One message of each queue is asked for first: mostly there is none."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY_S  # before the look: what is given back during it is not missed
        lanes = list(session.of_queue.values())
        count = 1
        while lanes:
            for lane in lanes:
                lane.asked, lane.is_empty = count, False
            names = {lane: topology.returned_queue(lane.queue) for lane in lanes}
            session.link.send(b"".join(wire.get(lane.number, names[lane]) * count for lane in lanes))
            self._take_in_until(session, partial(_is_answered, lanes), "a get")
            lanes = [lane for lane in lanes if lane.is_open and not lane.is_empty]
            if lanes:
                self._end_consumers(session)
                count = min((limit - len(session.inbox)) // len(lanes), _ASKED_AT_ONCE)
                if count < 1:
                    self._look_at = 0.0  # there may be more
                    return

    # ------------------------------------------------------------------ without a fetch

    def beat(self) -> None:
        """Read what has come while no fetch does: heartbeats, closed channels. Any thread; not while a fetch is under way.

        :raises AmqpUnavailable: the connection is lost, or silent for too long.
        """
        link = self.current().link
        if link.reading.acquire(blocking=False):
            try:
                self._take_in(self.current(), link.receive(0.0))
            finally:
                link.reading.release()
        link.beat()

    def rest(self) -> list[Receipt]:
        """Close consumers that a fetch left open; what they got, to be given back. Settle thread.

        For a kernel that has stopped fetching. Does nothing while a fetch is under way.
        """
        session = self.current()
        if not session.link.reading.acquire(blocking=False):
            return []
        try:
            self._end_consumers(session)
            self._repark(session)
            receipts: list[Receipt] = [delivery.receipt for delivery in session.inbox]
            session.inbox.clear()
        finally:
            session.link.reading.release()
        return receipts

    # ------------------------------------------------------------------ taking in

    def _take_in(self, session: Session, received: Iterable[Received]) -> None:
        for each in received:
            lane = session.lanes.get(each.channel)
            if lane is None:
                continue  # of a channel that has been closed
            if each.method == wire.BASIC_DELIVER:
                self._deliver(session, lane, each, wire.read_short(each.arguments, 0)[1])
                lane.credit -= 1
            elif each.method == wire.BASIC_GET_OK:
                lane.asked -= 1
                self._deliver(session, lane, each, 0)
            elif each.method == wire.BASIC_GET_EMPTY:
                lane.asked -= 1
                lane.is_empty = True
            elif each.method == wire.BASIC_CANCEL_OK:
                lane.consumer = ""
            elif each.method == wire.BASIC_CANCEL:
                lane.consumer = ""
                session.lost[lane.queue] = "the server ended consuming, it was deleted or moved"
            elif each.method == wire.CHANNEL_CLOSE:
                session.end(lane, each)
            elif each.method == wire.CHANNEL_CLOSE_OK:
                session.forget(lane)

    def _deliver(self, session: Session, lane: Lane, received: Received, at: int) -> None:
        arguments = received.arguments
        tag, flags = _TAG.unpack_from(arguments, at)
        exchange, at = wire.read_short(arguments, at + 9)
        routing_key, _ = wire.read_short(arguments, at)
        found = content.read(received.header, received.body)
        # Nothing of ours goes back by rejecting it: what the server marks was held by somebody who died, or was cut off.
        was_held = bool(flags & 1)
        receipt = Receipt(lane, tag, found, was_held or content.is_recovered(found))
        lane.outstanding.add(tag, receipt)
        due = content.due_of(found)
        if due > time.time() + _EARLY_S:
            self._early.append((receipt, (lane.queue, found, due)))
            return
        again = was_held or content.was_returned(found)
        session.inbox.append(self._delivery(receipt, exchange, routing_key, again))

    def _delivery(self, receipt: Receipt, exchange: str, routing_key: str, redelivered: bool) -> Delivery:
        found, queue = receipt.content, receipt.lane.queue
        error = found.error
        raw: bytes = b""
        properties: dict[str, Any] = {}
        if routing_key == topology.returned_queue(queue):
            routing_key = queue
        try:
            raw, properties = found.envelope(exchange, routing_key)
        except (TypeError, ValueError, RecursionError) as failure:
            error = error or f"headers that JSON cannot hold: {failure}"
        if len(found.body) + len(raw) > self._largest:
            error = f"too large: {len(found.body)} bytes, at most {self._largest} are delivered"
        return Delivery(
            queue,
            raw,
            found.headers if error is None else {},
            receipt,
            properties,
            content.attempts_of(found),
            redelivered,
            found.body,
            error,
            receipt.recovered,
            content.returns_of(found),
        )

    def _repark(self, session: Session) -> None:
        """Park what came before its time for the rest of it."""
        if not self._early:
            return
        early, self._early = self._early, []
        self._park([message for _, message in early])
        session.acknowledge(receipt for receipt, _ in early)

    # ------------------------------------------------------------------ counting

    def held(self, queue: str) -> tuple[int, int]:
        """Messages of a queue that were delivered and are not settled, and those that no fetch has returned yet."""
        session = self.session
        if session is None:
            return 0, 0
        unread = sum(delivery.queue == queue for delivery in tuple(session.inbox))
        lanes = [lane for lane in tuple(session.lanes.values()) if lane.queue == queue]
        return sum(len(lane.outstanding) for lane in lanes) - unread, unread


def _is_answered(lanes: Sequence[Lane]) -> bool:
    """Whether all that was asked for has been answered, as far as the channels still exist."""
    return not any(lane.asked and lane.is_open for lane in lanes)
