"""Revokes kept by RabbitMQ, so that they hold for workers that start later. Imports nothing of the kernel.

    stream kw.revoked      {"until": unix time, "ids": [...]}, one after the other; {"mark": id} of who reads

A stream, because reading takes nothing out of it. It is made when the first revoke is kept, and bounded in bytes. A reader
adds a mark of its own and reads from the beginning until it meets it.

Facts: RabbitMQ 3.9 and newer, documentation of streams: x-queue-type, x-max-length-bytes, x-stream-max-segment-size-bytes;
a consumer needs a prefetch count, acknowledges, and begins at x-stream-offset.
"""

from __future__ import annotations

import json
import struct
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from . import wire
from .errors import AmqpRefused
from .link import Link
from .relay import NOT_FOUND
from .server import parse_all
from .tables import write_properties, write_table

STREAM = "kw.revoked"
KEPT = 50_000
"""Ids that are read at most, the newest; the others are passed over."""
KEPT_S = 366 * 86_400.0
"""Those that expired longer ago are passed over, too."""
CHANNEL = 1
_PER_MESSAGE = 500
_PREFETCH = 1000
_ARGUMENTS = {
    "x-queue-type": "stream",
    "x-max-length-bytes": 16 * 1024 * 1024,
    "x-stream-max-segment-size-bytes": 4 * 1024 * 1024,
}


class AmqpRevokes:
    """See `kernel_worker.drivers.RevokeStore`.

    :param url: amqp://, pyamqp:// or amqps://, or several.
    :param options: `broker_transport_options`.
    :raises ValueError: the URL or an option makes no sense.
    """

    takes_copies = False

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._addresses = parse_all(url, options)

    def add(self, ids: Iterable[str], until: float) -> None:
        """On a connection of its own; confirmed."""
        known = list(ids)
        bodies = [{"until": until, "ids": known[at : at + _PER_MESSAGE]} for at in range(0, len(known), _PER_MESSAGE)]
        link = self._open()
        try:
            table = write_table(_ARGUMENTS)
            link.call(CHANNEL, wire.declare_queue(CHANNEL, STREAM, table), wire.QUEUE_DECLARE_OK)
            self._publish(link, bodies)
        finally:
            link.close()

    def read(self) -> list[tuple[str, float]]:
        """On a connection of its own."""
        link = self._open()
        try:
            link.call(CHANNEL, wire.declare_queue(CHANNEL, STREAM, passive=True), wire.QUEUE_DECLARE_OK)
            mark = str(uuid.uuid4())
            self._publish(link, [{"mark": mark}])
            found = self._read_until(link, mark)
        except AmqpRefused as error:
            if error.code == NOT_FOUND:  # nothing was ever revoked
                return []
            raise
        finally:
            link.close()
        oldest = time.time() - KEPT_S
        kept = sorted((each for each in found.items() if each[1] > oldest), key=lambda each: each[1])
        return kept[-KEPT:]

    def close(self) -> None:
        """Nothing stays open."""

    def _open(self) -> Link:
        link = Link.open_any(self._addresses, "kw:revokes")
        link.open_channel(CHANNEL)
        return link

    @staticmethod
    def _publish(link: Link, bodies: Iterable[Mapping[str, Any]]) -> None:
        link.call(CHANNEL, wire.frame(CHANNEL, wire.CONFIRM_SELECT, b"\0"), wire.CONFIRM_SELECT_OK)
        header = write_properties({"content_type": "application/json", "delivery_mode": 2}, {})
        sent = confirmed = 0

        def take(received: wire.Received) -> None:
            nonlocal confirmed
            if received.method == wire.BASIC_NACK:
                raise AmqpRefused(f"{link.server}: {STREAM} did not take a revoke", code=0)
            if received.method == wire.BASIC_ACK:
                tag, multiple = struct.unpack_from(">QB", received.arguments)
                confirmed = tag if multiple & 1 else confirmed + 1

        with link.reading:
            for body in bodies:
                data = json.dumps(body).encode()
                link.send(wire.publish_frames(CHANNEL, "", STREAM, header, data, link.frame_max, mandatory=False))
                sent += 1
            link.wait_until(CHANNEL, lambda: confirmed >= sent, take)

    @staticmethod
    def _read_until(link: Link, mark: str) -> dict[str, float]:
        """Ids to the time until which they are revoked. What is no record of ours is passed over."""
        found: dict[str, float] = {}
        is_met = False

        def take(received: wire.Received) -> None:
            nonlocal is_met
            if received.method != wire.BASIC_DELIVER:
                return
            (tag,) = struct.unpack_from(">Q", received.arguments, 1 + received.arguments[0])
            if tag % (_PREFETCH // 2) == 0:
                link.send(wire.ack(CHANNEL, tag, multiple=True))
            try:
                record = json.loads(received.body)
                is_met = is_met or record.get("mark") == mark
                found.update({each: float(record["until"]) for each in record.get("ids", ()) if isinstance(each, str)})
            except (ValueError, KeyError, TypeError, AttributeError):
                return

        link.call(CHANNEL, wire.qos(CHANNEL, _PREFETCH), wire.BASIC_QOS_OK)
        first = b"\0\0" + wire.short(STREAM) + wire.short("kw") + b"\0" + write_table({"x-stream-offset": "first"})
        with link.reading:
            link.send(wire.frame(CHANNEL, wire.BASIC_CONSUME, first))
            link.wait_until(CHANNEL, lambda: is_met, take)
        return found
