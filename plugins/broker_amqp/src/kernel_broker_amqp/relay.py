"""Publish with confirms, and declare: a connection for one thread at a time. Imports nothing of the kernel.

Every message is mandatory: one that no queue takes comes back and is an error, not a loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import wire
from .errors import AmqpRefused, AmqpUnavailable, NotRouted
from .link import Link
from .server import Addresses
from .tables import write_table
from .wire import Received

_CHANNEL = 1
_FLIGHT = 1_000  # messages that are sent before their confirms are waited for
_FLIGHT_BYTES = 4 * 1024 * 1024
NOT_FOUND, CONFLICT = 404, 406
_SIFTING = 2  # number of a second channel, for transactions
_SIFTED_AT_ONCE = 200
_COUNTED_S = 0.5


class Outgoing(NamedTuple):
    """One message to publish; `header` are property flags and values."""

    exchange: str
    routing_key: str
    header: bytes
    body: bytes


class Relay:
    """One connection with one channel; opened at first use and again after it was lost.

    :param confirm: wait for the server to have stored what is published. Without it only a lost connection
        is noticed, and what no queue takes is dropped by the server.
    """

    def __init__(self, addresses: Addresses, name: str, *, confirm: bool = True) -> None:
        self.addresses = addresses
        self._name = name
        self._confirm = confirm
        self._link: Link | None = None
        self._is_ready = False
        self._published = 0
        self.generation = 0
        """Grows with each connection."""

    # ------------------------------------------------------------------ publishing

    def publish(self, messages: Sequence[Outgoing], *, mandatory: bool = True) -> None:
        """Publish all, in order; the server has stored them when this returns (with confirms).

        :param mandatory: whether it is an error when no queue takes one; else the server drops it.
        :raises NotRouted: no queue takes one of them; the others are published. Names exchange and key.
        :raises AmqpRefused: an exchange does not exist (404), or the server refuses.
        :raises AmqpUnavailable: the server is away, blocks publishers, or could not store; some may be stored.
        """
        link = self._ready()
        self._wait_while_blocked(link)
        lost: list[str] = []
        flight: list[bytes] = []
        size = 0
        for message in messages:
            data = wire.publish_frames(_CHANNEL, *message, link.frame_max, self._confirm and mandatory)
            flight.append(data)
            size += len(data)
            if len(flight) >= _FLIGHT or size >= _FLIGHT_BYTES:
                lost += self._fly(link, flight)
                flight, size = [], 0
        if flight:
            lost += self._fly(link, flight)
        if lost:
            raise NotRouted(f"{link.server}: no queue takes what is sent to {lost[0]}", code=312)

    def _fly(self, link: Link, flight: list[bytes]) -> list[str]:
        """Send some, wait for their confirms; where to those that came back were sent."""
        first = self._published + 1
        self._published += len(flight)
        with link.reading:
            link.send(b"".join(flight))
            return self._confirmations(link, set(range(first, self._published + 1))) if self._confirm else []

    def _confirmations(self, link: Link, pending: set[int]) -> list[str]:
        lost: list[str] = []
        refused = 0
        deadline = time.monotonic() + link.server.deadline_s
        while pending:
            received = link.receive(deadline - time.monotonic())
            for each in received:
                if each.method in (wire.BASIC_ACK, wire.BASIC_NACK):
                    tag = int.from_bytes(each.arguments[:8], "big")
                    done = {number for number in pending if number <= tag} if each.arguments[8] & 1 else {tag}
                    pending -= done
                    refused += len(done) if each.method == wire.BASIC_NACK else 0
                elif each.method == wire.BASIC_RETURN:
                    lost.append(_returned(each))
                else:
                    self._other(link, each)
            if received:
                deadline = time.monotonic() + link.server.deadline_s
            elif pending and time.monotonic() >= deadline:
                reason = f"publishing is blocked: {link.blocked}" if link.blocked else "no confirm in time"
                raise link.fail(reason)
        if refused:
            raise AmqpUnavailable(f"{link.server}: the server could not store {refused} messages (nack)")
        return lost

    def _wait_while_blocked(self, link: Link) -> None:
        """A server in alarm reads nothing from publishers: better not to send, than not to know."""
        deadline = time.monotonic() + link.server.deadline_s
        with link.reading:
            self._drop(link, 0.0)
            while link.blocked:
                if time.monotonic() >= deadline:
                    raise AmqpUnavailable(f"{link.server}: publishing is blocked: {link.blocked}")
                self._drop(link, deadline - time.monotonic())

    def _drop(self, link: Link, timeout: float) -> None:
        for each in link.receive(timeout):
            self._other(link, each)

    def _other(self, link: Link, received: Received) -> None:
        if received.method == wire.CHANNEL_CLOSE:
            self._is_ready = False
            raise link.channel_closed(received)

    # ------------------------------------------------------------------ declaring and asking

    def call(self, request: bytes, answer: int) -> Received:
        """One request on this relay's channel (number 1), and its answer.

        :raises AmqpRefused: the server said no, and closed the channel; the next call opens it again.
        """
        link = self._ready()
        try:
            return link.call(_CHANNEL, request, answer)
        except AmqpRefused:
            self._is_ready = False
            raise

    def declare_queue(self, queue: str, arguments: Mapping[str, Any]) -> None:
        """Make a durable queue exist.

        :raises AmqpRefused: it exists with other arguments.
        """
        try:
            self.call(wire.declare_queue(_CHANNEL, queue, write_table(arguments)), wire.QUEUE_DECLARE_OK)
        except AmqpRefused as error:
            raise _conflict(error, f"queue {queue!r}") from None

    def sizes(self, queues: Sequence[str]) -> list[int | None]:
        """Messages that wait in each queue; None: there is no such queue. One round trip or two.

        Asking for a queue that is not there closes the channel, so each gets a channel of its own.
        """
        link = self._ready()
        answers: dict[int, int | None] = {}
        closing = set(range(_CHANNEL + 1, _CHANNEL + 1 + len(queues)))

        def take(received: Received) -> None:
            channel = received.channel
            if received.method == wire.QUEUE_DECLARE_OK:
                answers[channel] = _size(received)
                link.send(wire.frame(channel, wire.CHANNEL_CLOSE, wire.GOOD_BYE))
            elif received.method == wire.CHANNEL_CLOSE_OK:
                closing.discard(channel)
            elif received.method == wire.CHANNEL_CLOSE:
                error = link.channel_closed(received)
                closing.discard(channel)
                if channel == _CHANNEL or error.code != NOT_FOUND:
                    raise error
                answers[channel] = None

        with link.reading:
            link.send(
                b"".join(
                    wire.frame(channel, wire.CHANNEL_OPEN, b"\0") + wire.declare_queue(channel, queue, passive=True)
                    for channel, queue in enumerate(queues, _CHANNEL + 1)
                )
            )
            deadline = time.monotonic() + link.server.deadline_s
            while closing:
                received = link.receive(deadline - time.monotonic())
                for each in received:
                    take(each)
                if not received and time.monotonic() >= deadline:
                    raise link.fail("no answer in time")
        return [answers[channel] for channel in sorted(answers)]

    def exists(self, queue: str) -> bool:
        """Whether there is a queue of this name."""
        return self.sizes([queue])[0] is not None

    def bind(self, queue: str, exchange: str, kind: str, routing_key: str) -> None:
        """Make a durable exchange exist, and bind a queue to it.

        :raises AmqpRefused: the exchange exists and is of another kind.
        """
        self.declare_exchange(exchange, kind)
        self.bind_queue(queue, exchange, routing_key)

    def declare_exchange(self, exchange: str, kind: str) -> None:
        """Make a durable exchange exist.

        :raises AmqpRefused: it exists and is of another kind.
        """
        try:
            self.call(wire.declare_exchange(_CHANNEL, exchange, kind), wire.EXCHANGE_DECLARE_OK)
        except AmqpRefused as error:
            raise _conflict(error, f"exchange {exchange!r}") from None

    def bind_queue(self, queue: str, exchange: str, routing_key: str) -> None:
        """Bind a queue to an exchange; both exist."""
        self.call(wire.bind(_CHANNEL, queue, exchange, routing_key), wire.QUEUE_BIND_OK)

    def bind_exchange(self, exchange: str, source: str, routing_key: str) -> None:
        """Bind an exchange to another one; both exist."""
        self.call(wire.bind_exchange(_CHANNEL, exchange, source, routing_key), wire.EXCHANGE_BIND_OK)

    def purge(self, queue: str) -> int:
        """Delete what waits in a queue; how many. 0 when there is no such queue."""
        try:
            answer = self.call(wire.purge(_CHANNEL, queue), wire.QUEUE_PURGE_OK)
        except AmqpRefused as error:
            if error.code == NOT_FOUND:
                return 0
            raise
        return int.from_bytes(answer.arguments[:4], "big")

    def is_quorum(self, queue: str) -> bool:
        """Whether an existing queue is a quorum queue. The server tells it only when it refuses to declare another kind."""
        try:
            self.declare_queue(queue, {"x-queue-type": "quorum"})
        except AmqpRefused as error:
            if error.code != CONFLICT:
                raise
            return "x-queue-type" not in str(error) and "type" not in str(error)
        return True

    def sift(self, queue: str, judge: Callable[[Received], Outgoing | bool], is_done: Callable[[], bool]) -> int:
        """Go through a queue from its front. Publishing and deleting are one transaction, several messages at a time.
        Whoever asks for messages afterwards gets those that were left there.

        :param judge: for each message: what to publish in its place, True to delete it, False to leave it there.
        :param is_done: asked between messages; True ends it early.
        :return: how many were published or deleted. 0 when there is no such queue.
        """
        link = self._ready()
        taken = changed = beyond = 0
        with link.reading:
            opening = wire.frame(_SIFTING, wire.CHANNEL_OPEN, b"\0") + wire.frame(_SIFTING, wire.TX_SELECT)
            link.send(opening)
            try:
                link.wait_for(_SIFTING, wire.TX_SELECT_OK)
                while not is_done():
                    found = self._get(link, queue)
                    taken, beyond = taken + len(found), _count_beyond(found)
                    parts = [_sifted(each, judge(each), link.frame_max) for each in found if not is_done()]
                    changed += sum(map(bool, parts))
                    link.send(b"".join(parts) + wire.frame(_SIFTING, wire.TX_COMMIT))
                    link.wait_for(_SIFTING, wire.TX_COMMIT_OK)
                    if len(found) < _SIFTED_AT_ONCE:
                        break
                # Closing the channel would put them back, too, but only after its answer: who asks next would miss them.
                link.send(wire.put_back(_SIFTING) + wire.frame(_SIFTING, wire.TX_COMMIT))
                link.wait_for(_SIFTING, wire.TX_COMMIT_OK)
                self._wait_until_counted(link, queue, taken - changed + beyond)
            except AmqpRefused as error:
                if error.code == NOT_FOUND:
                    return changed
                raise
            link.send(wire.frame(_SIFTING, wire.CHANNEL_CLOSE, wire.GOOD_BYE))
            link.wait_for(_SIFTING, wire.CHANNEL_CLOSE_OK)
        return changed

    @staticmethod
    def _wait_until_counted(link: Link, queue: str, count: int) -> None:
        """Wait for so many messages in a queue, which may be asked for its size before it has put back all. Not for long:
        others may take some, and quorum queues tell their size late."""
        until = time.monotonic() + _COUNTED_S
        while count and time.monotonic() < until:
            link.send(wire.declare_queue(_SIFTING, queue, passive=True))
            if _size(link.wait_for(_SIFTING, wire.QUEUE_DECLARE_OK)) >= count:
                break
            time.sleep(0.002)

    @staticmethod
    def _get(link: Link, queue: str) -> list[Received]:
        found: list[Received] = []
        answers = 0

        def take(received: Received) -> None:
            nonlocal answers
            answers += received.method in (wire.BASIC_GET_OK, wire.BASIC_GET_EMPTY)
            if received.method == wire.BASIC_GET_OK:
                found.append(received)

        link.send(wire.get(_SIFTING, queue) * _SIFTED_AT_ONCE)
        link.wait_until(_SIFTING, lambda: answers >= _SIFTED_AT_ONCE, take)
        return found

    # ------------------------------------------------------------------ the connection

    def _ready(self) -> Link:
        link = self._link
        if link is None or not link.is_open:
            if link is not None:
                link.abandon()
            link = self._link = Link.open_any(self.addresses, self._name)
            self._is_ready = False
            self.generation += 1
        if not self._is_ready:
            link.open_channel(_CHANNEL)
            self._published = 0
            if self._confirm:
                link.call(_CHANNEL, wire.frame(_CHANNEL, wire.CONFIRM_SELECT, b"\0"), wire.CONFIRM_SELECT_OK)
            self._is_ready = True
        return link

    @property
    def is_idle_and_alive(self) -> bool:
        """Whether an open connection still is one: reads what has come meanwhile."""
        link = self._link
        if link is None or not link.is_open:
            return False
        try:
            with link.reading:
                self._drop(link, 0.0)
        except (AmqpUnavailable, AmqpRefused):
            return link.is_open
        return True

    def beat(self) -> None:
        """Keep the connection alive while it is not used, and notice its end. Raises nothing: it is opened again."""
        link = self._link
        if link is not None and self.is_idle_and_alive:
            try:
                link.beat()
            except AmqpUnavailable:
                pass

    def close(self) -> None:
        """Say good-bye. Idempotent, never raises."""
        link, self._link = self._link, None
        if link is not None:
            # Without confirms the answer is all that says that what was published has arrived.
            link.close(1.0 if self._confirm else link.server.deadline_s)

    def abandon(self) -> None:
        """Forget the connection without a word: in a forked child."""
        link, self._link = self._link, None
        if link is not None:
            link.abandon()


def _sifted(found: Received, verdict: Outgoing | bool, frame_max: int) -> bytes:
    """Frames that carry out a verdict; none to leave a message where it is."""
    if verdict is False:
        return b""
    done = wire.ack(_SIFTING, int.from_bytes(found.arguments[:8], "big"))
    if verdict is True:
        return done
    return wire.publish_frames(_SIFTING, *verdict, frame_max, False) + done


def _count_beyond(found: Sequence[Received]) -> int:
    """Messages that were left in the queue, as the server says with each that is got from it."""
    return int.from_bytes(found[-1].arguments[-4:], "big") if found else 0


def _size(declared: Received) -> int:
    """Messages that wait in a queue, from the answer to its declaration."""
    _, at = wire.read_short(declared.arguments, 0)
    return int.from_bytes(declared.arguments[at : at + 4], "big")


def _returned(received: Received) -> str:
    _, at = wire.read_short(received.arguments, 2)
    exchange, at = wire.read_short(received.arguments, at)
    routing_key, _ = wire.read_short(received.arguments, at)
    return f"exchange {exchange!r} with routing key {routing_key!r}" if exchange else f"queue {routing_key!r}"


def _conflict(error: AmqpRefused, what: str) -> AmqpRefused:
    if error.code != CONFLICT:
        return error
    return AmqpRefused(
        f"{what} exists with other properties: {error}",
        code=CONFLICT,
        hint="use the arguments it has (x-queue-type, x-max-priority, …), or delete it when it is empty",
    )
