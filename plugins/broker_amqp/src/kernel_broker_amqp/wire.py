"""AMQP 0-9-1 as bytes: the frames of a stream, and the methods that are sent. Pure; knows no socket.

Frame: type (1 method, 2 content header, 3 body, 8 heartbeat), channel, size, payload, 0xCE. A method with content
is followed by one header frame (class, weight, body size, properties) and body frames until the size is reached.
Numbers of methods are class << 16 | method, as in the specification.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

CONNECTION_CLOSE, CONNECTION_CLOSE_OK = 10 << 16 | 50, 10 << 16 | 51
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = 10 << 16 | 60, 10 << 16 | 61
CHANNEL_OPEN, CHANNEL_OPEN_OK = 20 << 16 | 10, 20 << 16 | 11
CHANNEL_CLOSE, CHANNEL_CLOSE_OK = 20 << 16 | 40, 20 << 16 | 41
EXCHANGE_DECLARE, EXCHANGE_DECLARE_OK = 40 << 16 | 10, 40 << 16 | 11
EXCHANGE_BIND, EXCHANGE_BIND_OK = 40 << 16 | 30, 40 << 16 | 31
QUEUE_DECLARE, QUEUE_DECLARE_OK = 50 << 16 | 10, 50 << 16 | 11
QUEUE_BIND, QUEUE_BIND_OK = 50 << 16 | 20, 50 << 16 | 21
QUEUE_PURGE, QUEUE_PURGE_OK = 50 << 16 | 30, 50 << 16 | 31
QUEUE_DELETE, QUEUE_DELETE_OK = 50 << 16 | 40, 50 << 16 | 41
BASIC_QOS, BASIC_QOS_OK = 60 << 16 | 10, 60 << 16 | 11
BASIC_CONSUME, BASIC_CONSUME_OK = 60 << 16 | 20, 60 << 16 | 21
BASIC_CANCEL, BASIC_CANCEL_OK = 60 << 16 | 30, 60 << 16 | 31
BASIC_PUBLISH, BASIC_RETURN, BASIC_DELIVER = 60 << 16 | 40, 60 << 16 | 50, 60 << 16 | 60
BASIC_GET, BASIC_GET_OK, BASIC_GET_EMPTY = 60 << 16 | 70, 60 << 16 | 71, 60 << 16 | 72
BASIC_ACK, BASIC_NACK = 60 << 16 | 80, 60 << 16 | 120
CONFIRM_SELECT, CONFIRM_SELECT_OK = 85 << 16 | 10, 85 << 16 | 11

TX_SELECT, TX_SELECT_OK = 90 << 16 | 10, 90 << 16 | 11
TX_COMMIT, TX_COMMIT_OK = 90 << 16 | 20, 90 << 16 | 21

GOOD_BYE = bytes(7)
"""Arguments of a close: no reply code, no text, no method."""
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_CONTENT = frozenset((BASIC_DELIVER, BASIC_GET_OK, BASIC_RETURN))
_HEAD = struct.Struct(">BHI")
_METHOD_HEAD = struct.Struct(">BHII")  # frame head and method number
_HEADER = struct.Struct(">HHQ")
_NUMBER = struct.Struct(">I")
_ACK = struct.Struct(">BHIIQBB")
_END = 0xCE


class Received(NamedTuple):
    """One method from the server; header (properties) and body only where the method has content."""

    channel: int
    method: int
    arguments: bytes
    header: bytes = b""
    body: bytes = b""


class Unreadable(ValueError):
    """The stream is no AMQP 0-9-1."""


class TooLarge(ValueError):
    """Headers that do not fit into one frame, as they must."""


class Parser:
    """Cuts a stream of bytes into methods. One thread at a time."""

    def __init__(self, rest: bytes = b"") -> None:
        self._rest = rest
        self._open: dict[int, tuple[int, bytes]] = {}  # channel to a method that waits for its content
        self._contents: dict[int, tuple[bytes, int, list[bytes]]] = {}

    def feed(self, data: bytes) -> list[Received]:
        """The methods that are complete with this data, in order.

        :raises Unreadable: the peer does not speak AMQP 0-9-1.
        """
        buffer = self._rest + data if self._rest else data
        found: list[Received] = []
        at, have = 0, len(buffer)
        while have - at >= 8:
            kind, channel, size = _HEAD.unpack_from(buffer, at)
            end = at + 7 + size
            if end >= have:
                break
            if buffer[end] != _END:
                raise Unreadable("a frame does not end where it says")
            if kind != 8:
                self._take(kind, channel, buffer[at + 7 : end], found)
            at = end + 1
        self._rest = buffer[at:]
        return found

    def _take(self, kind: int, channel: int, payload: bytes, found: list[Received]) -> None:
        if kind == 1:
            (method,) = _NUMBER.unpack_from(payload)
            if method in _CONTENT:
                self._open[channel] = method, payload[4:]
            else:
                found.append(Received(channel, method, payload[4:]))
            return
        if channel not in self._open:
            raise Unreadable(f"a frame of type {kind} where none was expected")
        if kind == 2:
            _, _, size = _HEADER.unpack_from(payload)
            if size:
                self._contents[channel] = payload[12:], size, []
                return
            method, arguments = self._open.pop(channel)
            found.append(Received(channel, method, arguments, payload[12:], b""))
            return
        header, missing, chunks = self._contents[channel]
        chunks.append(payload)
        if len(payload) < missing:
            self._contents[channel] = header, missing - len(payload), chunks
            return
        del self._contents[channel]
        method, arguments = self._open.pop(channel)
        found.append(Received(channel, method, arguments, header, chunks[0] if len(chunks) == 1 else b"".join(chunks)))


def short(text: str) -> bytes:
    """A short string: at most 255 bytes.

    :raises ValueError: it is longer.
    """
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"{text[:40]!r}… has {len(data)} bytes, a name in AMQP has 255 at most")
    return bytes((len(data),)) + data


def read_short(data: bytes, at: int) -> tuple[str, int]:
    """The short string at an offset, and the offset behind it."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "backslashreplace"), end


def frame(channel: int, method: int, arguments: bytes = b"") -> bytes:
    """One method without content."""
    return _METHOD_HEAD.pack(1, channel, 4 + len(arguments), method) + arguments + b"\xce"


def publish_frames(
    channel: int, exchange: str, routing_key: str, header: bytes, body: bytes, frame_max: int, mandatory: bool = True
) -> bytes:
    """basic.publish with its content. `header` are property flags and values.

    :raises TooLarge: the server would end the connection.
    """
    if len(header) + 20 > frame_max:
        raise TooLarge(
            f"headers and properties have {len(header):,} bytes, this server takes {frame_max - 20:,} at most"
        )
    arguments = b"\0\0" + short(exchange) + short(routing_key) + (b"\x01" if mandatory else b"\0")
    properties = _HEADER.pack(60, 0, len(body)) + header
    parts = [
        frame(channel, BASIC_PUBLISH, arguments),
        _HEAD.pack(2, channel, len(properties)),
        properties,
        b"\xce",
    ]
    most = frame_max - 8
    for start in range(0, len(body), most):
        chunk = body[start : start + most]
        parts += (_HEAD.pack(3, channel, len(chunk)), chunk, b"\xce")
    return b"".join(parts)


def ack(channel: int, tag: int, multiple: bool = False) -> bytes:
    """basic.ack of one delivery, or of all up to it."""
    return _ACK.pack(1, channel, 13, BASIC_ACK, tag, multiple, _END)


def put_back(channel: int) -> bytes:
    """basic.nack of all deliveries that are not acknowledged: they go back to where they were."""
    return frame(channel, BASIC_NACK, bytes(8) + b"\x03")


def qos(channel: int, count: int) -> bytes:
    """basic.qos for the consumers to come on this channel; 0 means without limit."""
    return frame(channel, BASIC_QOS, struct.pack(">IHB", 0, count, 0))


def consume(channel: int, queue: str, tag: str) -> bytes:
    """basic.consume without waiting for the answer."""
    return frame(channel, BASIC_CONSUME, b"\0\0" + short(queue) + short(tag) + b"\x08\0\0\0\0")


def cancel(channel: int, tag: str) -> bytes:
    """basic.cancel; the answer comes behind the last delivery to this consumer (quorum queues: nearly always)."""
    return frame(channel, BASIC_CANCEL, short(tag) + b"\0")


def get(channel: int, queue: str) -> bytes:
    """basic.get with acknowledgement."""
    return frame(channel, BASIC_GET, b"\0\0" + short(queue) + b"\0")


def declare_queue(channel: int, queue: str, arguments: bytes = b"\0\0\0\0", *, passive: bool = False) -> bytes:
    """queue.declare, durable. `arguments` is an encoded table."""
    return frame(channel, QUEUE_DECLARE, b"\0\0" + short(queue) + (b"\x03" if passive else b"\x02") + arguments)


def declare_exchange(channel: int, exchange: str, kind: str) -> bytes:
    """exchange.declare, durable."""
    return frame(channel, EXCHANGE_DECLARE, b"\0\0" + short(exchange) + short(kind) + b"\x02\0\0\0\0")


def bind(channel: int, queue: str, exchange: str, routing_key: str) -> bytes:
    """queue.bind."""
    arguments = b"\0\0" + short(queue) + short(exchange) + short(routing_key) + b"\0\0\0\0\0"
    return frame(channel, QUEUE_BIND, arguments)


def bind_exchange(channel: int, exchange: str, source: str, routing_key: str) -> bytes:
    """exchange.bind: what comes to the source with such a key goes to the exchange, too."""
    arguments = b"\0\0" + short(exchange) + short(source) + short(routing_key) + b"\0\0\0\0\0"
    return frame(channel, EXCHANGE_BIND, arguments)


def purge(channel: int, queue: str) -> bytes:
    """queue.purge."""
    return frame(channel, QUEUE_PURGE, b"\0\0" + short(queue) + b"\0")


def delete_queue(channel: int, queue: str) -> bytes:
    """queue.delete."""
    return frame(channel, QUEUE_DELETE, b"\0\0" + short(queue) + b"\0")


def close_reason(arguments: bytes) -> tuple[int, str]:
    """Reply code and text of a connection.close or channel.close."""
    code = int.from_bytes(arguments[:2], "big")
    text, _ = read_short(arguments, 2)
    return code, text
