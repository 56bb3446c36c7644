"""The reply queue of one process, and its reader. Whoever waits reads for all who wait; there is no thread of our own."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from kernel_broker_amqp import wire
from kernel_broker_amqp.errors import AmqpRefused, AmqpUnavailable
from kernel_broker_amqp.link import Link
from kernel_broker_amqp.server import Addresses
from kernel_broker_amqp.tables import BadTable, read_properties, write_table
from kernel_broker_amqp.wire import Received

from .memory import Memory

_CHANNEL = 1
_TAG = struct.Struct(">Q")
_UNUSED_S = 86_400.0
_DECLARE_AGAIN_S = 600.0
_STEP_S = 1.0
_PAUSE_S = 0.2
_PATIENCE_S = 20.0
"""Without a time-out, waiting ends when the server was away for so long."""


class Replies:
    """Reads one queue. Any thread.

    :param unused_s: seconds after which the server drops the queue when nobody has used it.
    """

    def __init__(self, addresses: Addresses, unused_s: float | None) -> None:
        self._addresses = addresses
        self._unused_ms = int(min(unused_s or _UNUSED_S, _UNUSED_S) * 1000)
        self._changed = threading.Condition()
        self._memory = Memory()
        self._has_reader = False
        self._link: Link | None = None
        self._queue = ""
        self._declared_at = 0.0
        self._unacked = 0
        self._away_since = 0.0

    # ------------------------------------------------------------------ asking

    def expect(self, queue: str) -> None:
        """Have the queue before a message asks for answers to it. Costs a round trip now and then only.

        :raises ConnectionError: the server is away.
        """
        if queue == self._queue and time.monotonic() - self._declared_at < _DECLARE_AGAIN_S:
            return
        self._read_alone()
        try:
            if queue != self._queue:
                self._hang_up()
            self._queue = queue
            self._ask()
        finally:
            self._end_reading()

    def latest(self, task_id: str) -> bytes | None:
        """The latest state of a task, with all that the server has for us.

        :raises ConnectionError: the server is away.
        """
        if self._queue:
            self._read_alone()
            try:
                # The first answer says that the queue has handed over all it has, the second one comes behind that.
                self._ask(times=2)
            finally:
                self._end_reading()
        with self._changed:
            return self._memory.get(task_id)

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        """See `ResultBackend.wait`. A lost connection is opened again until the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        meta = self._latest_by(task_id, deadline)
        while meta is None or not is_final(meta):
            left = _STEP_S if deadline is None else min(_STEP_S, deadline - time.monotonic())
            if left <= 0:
                return None
            if self._become_reader(left):
                self._read(left, deadline)
            with self._changed:
                meta = self._memory.get(task_id)
        return meta

    def _read(self, seconds: float, deadline: float | None) -> None:
        """Take in what comes, waiting for it so long; a lost connection is opened again. As the reader, which ends."""
        try:
            if self._queue:
                link = self._connected()
                with link.reading:
                    received = link.receive(seconds)
                self._take(received)
            else:  # this process has sent nothing yet, so nothing can come
                time.sleep(min(seconds, _PAUSE_S))
        except AmqpUnavailable as error:
            self._pause(deadline, error)
        finally:
            self._end_reading()

    def _latest_by(self, task_id: str, deadline: float | None) -> bytes | None:
        while True:
            try:
                return self.latest(task_id)
            except AmqpUnavailable as error:
                self._pause(deadline, error)

    def _pause(self, deadline: float | None, error: AmqpUnavailable) -> None:
        """Before the next attempt to connect; raises the error when there is no time for one."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now + _PAUSE_S >= (self._away_since + _PATIENCE_S if deadline is None else deadline):
            raise error
        time.sleep(_PAUSE_S)

    def forget(self, task_id: str) -> None:
        """Drop what has come, and what lies in the queue, of a task."""
        self.latest(task_id)
        with self._changed:
            self._memory.forget(task_id)

    def close(self) -> None:
        """Delete the queue if it is empty, and hang up. Idempotent, never raises."""
        self._read_alone()
        try:
            if self._link is not None and self._queue:
                with suppress(AmqpUnavailable, AmqpRefused):
                    link = self._connected()
                    with link.reading:
                        link.send(wire.delete_queue(_CHANNEL, self._queue))
                        link.wait_for(_CHANNEL, wire.QUEUE_DELETE_OK, self._take_one)
            self._hang_up()
            self._queue = ""
        finally:
            self._end_reading()

    def abandon(self) -> None:
        """Forget the connection without a word: in a forked child."""
        if self._link is not None:
            self._link.abandon()

    # ------------------------------------------------------------------ one reader

    def _become_reader(self, timeout: float | None = None) -> bool:
        """Wait until nobody reads, and read from now on; False when something was read first, or time is over."""
        with self._changed:
            if self._has_reader:
                self._changed.wait(timeout)
            if self._has_reader:
                return False
            self._has_reader = True
            return True

    def _read_alone(self) -> None:
        while not self._become_reader():
            pass

    def _end_reading(self) -> None:
        with self._changed:
            self._has_reader = False
            self._changed.notify_all()

    # ------------------------------------------------------------------ reading; the one reader only

    def _connected(self) -> Link:
        link = self._link
        if link is None or not link.is_open:
            self._hang_up()
            link = self._link = Link.open_any(self._addresses, "kw:waiting")
            link.open_channel(_CHANNEL)
            self._unacked = 0
            self._declare()
            link.send(wire.consume(_CHANNEL, self._queue, "kw"))
            self._away_since = 0.0
        return link

    def _ask(self, times: int = 1) -> None:
        """Declare the queue so often. Between two calls nobody reads, so the server may have closed the connection for its
        silence long ago: then on a new one."""
        for may_be_old in (self._link is not None and self._link.is_open, False):
            try:
                self._connected()
                for _ in range(times):
                    self._declare()
                return
            except AmqpUnavailable:
                if not may_be_old:
                    raise

    def _declare(self) -> None:
        link = self._link
        assert link is not None
        arguments = write_table({"x-expires": self._unused_ms})
        with link.reading:
            link.send(wire.declare_queue(_CHANNEL, self._queue, arguments))
            link.wait_for(_CHANNEL, wire.QUEUE_DECLARE_OK, self._take_one)
        self._acknowledge(link)
        self._declared_at = time.monotonic()

    def _take(self, received: list[Received]) -> None:
        for each in received:
            self._take_one(each)
        if self._link is not None:
            self._acknowledge(self._link)

    def _take_one(self, received: Received) -> None:
        if received.method == wire.BASIC_CANCEL and self._link is not None:
            raise self._link.fail("the reply queue was deleted")
        if received.method != wire.BASIC_DELIVER:
            return
        _, at = wire.read_short(received.arguments, 0)
        (self._unacked,) = _TAG.unpack_from(received.arguments, at)
        found = _state(received)
        if found is None:
            return  # no answer to anything: whoever wrote it, nobody waits for it
        task_id, state, keep_s = found
        with self._changed:
            self._memory.put(task_id, received.body, state, keep_s)
            self._changed.notify_all()

    def _acknowledge(self, link: Link) -> None:
        if self._unacked:
            tag, self._unacked = self._unacked, 0
            link.send(wire.ack(_CHANNEL, tag, multiple=True))

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


def _state(received: Received) -> tuple[str, str, float | None] | None:
    """Task, its state, and seconds to keep it; None when it is no task meta."""
    try:
        properties, _ = read_properties(received.header)
        meta = json.loads(received.body)
        task_id = meta.get("task_id") or properties.get("correlation_id")
        expiration = properties.get("expiration")
        keep_s = int(expiration) / 1000 if expiration else None
        if not isinstance(task_id, str):
            return None
        return task_id, str(meta.get("status")), keep_s
    except (BadTable, ValueError, AttributeError, RecursionError):
        return None
