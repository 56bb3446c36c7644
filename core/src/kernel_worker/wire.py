"""Frames over a socket pair between the kernel process and an executor.

Imports nothing of the kernel. A frame is a 5-byte head, length of the payload (u32) and kind (u8), little endian,
and the payload. Lengths are checked on reading: the other side may be a process that a task has damaged.

    RUN      kernel → executor   RUN_HEAD, queue, raw envelope, payload: one request to run
    DONE     executor → kernel   n × DONE_RECORD: requests that ended with nothing to say but their outcome
    ENDED    executor → kernel   JSON {tag, kind, runtime, error, requeue, until}: any other end
    CONCLUDE kernel → executor   like RUN, with kind and text: store this end of a request, run nothing
    the rest                     JSON
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any


class Frame(IntEnum):
    """Kinds of frames."""

    HELLO = 1  # kernel → executor: what to load
    LOADED = 2  # executor → kernel: the application is imported, this is in it
    UP = 4  # executor → kernel: ready for requests
    RUN = 5
    DONE = 6
    ENDED = 7
    CONCLUDE = 8
    CANCEL = 9  # kernel → executor: raise inside this request
    RECALL = 10  # kernel → executor: give back what has not started
    RETURNED = 11  # executor → kernel: tags that were given back
    RETIRE = 12  # kernel → executor: finish what you have, wait so many seconds for the result store, then exit
    FAILED = 13  # executor → kernel: cannot start, and why
    VERBOSE = 15  # kernel → executor: whether outcomes shall carry what was returned or raised, for events
    UNSTORED = 14  # executor → kernel: tags of all that have ended and are not reported, for want of the result store
    FENCE = 16  # kernel → executor: these became another worker's, keep their ends to yourself
    FENCED = 17  # executor → kernel: understood
    NOTIFY = 18  # kernel → one executor: tell the application of this
    CALL = 19  # kernel → executor: answer a remote-control command of the application, beside what runs
    FORK = 20  # kernel → fork server, with two descriptors: make an executor
    FORKED = 21  # fork server → kernel: its pid
    EXITED = 22  # fork server → kernel: pid and wait status
    ANSWER = 24  # executor → kernel: the reply to a CALL
    KILL = 23  # kernel → fork server: send a signal to a child that it has not reaped yet


HEAD = struct.Struct("<IB")
RUN_HEAD = struct.Struct("<QffHHII")
"""tag, hard limit s, soft limit s, attempts, flags, length of queue name, length of raw; payload is the rest."""
CONCLUDE_HEAD = struct.Struct("<BI")
"""Outcome kind and length of the text, in front of a RUN payload."""
DONE_RECORD = struct.Struct("<QBf")
"""tag, outcome kind, run time s."""
FLAG_REDELIVERED = 1
FLAG_PAYLOAD = 2

MAX_UNSTORED = 1000
"""Ends an executor keeps while the result store is away. With so many it takes no work, and gives back what it gets."""
MAX_FRAME = 256 * 1024 * 1024
CHUNK = 64 * 1024
"""Bytes read at once. With more, malloc maps and unmaps memory for every read (a third of the kernel's time for 5 ms tasks)."""


class ChannelClosed(Exception):
    """The other side is gone."""


class FrameError(Exception):
    """The other side does not speak this protocol (any more)."""


def pack(kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEAD.pack(len(payload), kind) + payload


def pack_json(kind: int, value: Any) -> bytes:
    """One frame with a JSON payload."""
    return pack(kind, json.dumps(value, separators=(",", ":")).encode())


class Channel:
    """Frames on one end of a socket pair.

    The kernel's end is non-blocking and buffered in both directions; the executor's end blocks.
    Not thread-safe: reading and writing may be done by two threads, each by one.
    """

    __slots__ = ("_in", "_out", "out_bytes", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._in = bytearray()
        self._out: list[bytes] = []
        self.out_bytes = 0

    def fileno(self) -> int:
        return self.sock.fileno()

    # -- reading

    def receive(self, flags: int = 0) -> list[tuple[int, bytes]]:
        """One read from the socket; the frames that are complete now, maybe none.

        :raises ChannelClosed: end of file or reset.
        :raises FrameError: an impossible length.
        """
        try:
            data = self.sock.recv(CHUNK, flags)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not data:
            raise ChannelClosed("end of file")
        self._in += data
        return list(self._complete())

    def _complete(self) -> Iterator[tuple[int, bytes]]:
        buffer, size, at = self._in, len(self._in), 0
        try:
            while size - at >= 5:
                length, kind = HEAD.unpack_from(buffer, at)
                if length > MAX_FRAME:
                    raise FrameError(f"frame of kind {kind} claims {length} bytes")
                end = at + 5 + length
                if end > size:
                    break
                yield kind, bytes(memoryview(buffer)[at + 5 : end])
                at = end
        finally:
            if at:
                del buffer[:at]

    # -- writing

    def send(self, data: bytes) -> None:
        """Write everything, blocking. Executor's end.

        :raises ChannelClosed: the kernel is gone.
        """
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def queue(self, data: bytes) -> None:
        """Remember bytes to be written by `flush`. Kernel's end."""
        self._out.append(data)
        self.out_bytes += len(data)

    def flush(self) -> bool:
        """Write what is queued as far as the socket takes it; True when nothing is left. Kernel's end.

        :raises ChannelClosed: the executor is gone.
        """
        if not self._out:
            return True
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        try:
            sent = self.sock.send(data)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR):
                raise ChannelClosed(str(error)) from error
            sent = 0
        self._out = [] if sent == len(data) else [data[sent:]]
        self.out_bytes = len(data) - sent
        return not self.out_bytes

    def close(self) -> None:
        """Close the socket; idempotent."""
        self.sock.close()
