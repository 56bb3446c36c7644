"""A TCP proxy in front of a server: what passes can be cut, swallowed or delayed. Standard library only.

One thread accepts, two threads per connection carry bytes; all end with `close`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

_CHUNK = 65536
_BEGINNING = 4096
"""Bytes among which a client names itself: with AMQP only in its second message."""
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0: close() sends RST


class Proxy:
    """Listens on a free loopback port and carries every connection to `port`.

    :param only: the faults befall only connections whose client says this at the beginning, e.g. its name; all by default.
    """

    def __init__(self, port: int, only: str = "") -> None:
        self.delay_s = 0.0
        """Added to every piece of data, in both directions."""
        self.bytes_per_s = 0.0
        """How much passes each connection and direction; 0 = all there is."""
        self.refusing = False
        """Whether new connections are reset at once, as by a host where nobody listens."""
        self.chosen = 0
        """Connections so far that the faults are for."""
        self._only = only.encode()
        self.accepted = 0
        """Connections so far."""
        self._target = port
        self._open: set[socket.socket] = set()
        self._others: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept_forever, name="proxy", daemon=True).start()

    def cut(self) -> int:
        """Reset all connections that are open now; how many there were."""
        with self._lock:
            cut = set(self._open)
            self._open -= cut
        for sock in cut:
            _reset(sock)
        return len(cut) // 2

    @contextlib.contextmanager
    def blackhole(self) -> Iterator[None]:
        """Connections stay open and new ones are accepted, but nothing passes; what waited passes afterwards."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    def close(self) -> None:
        """Stop listening and reset everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._flowing.set()
        with self._lock:
            self._open |= self._others
        self.cut()

    def _accept_forever(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.refusing:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                server.settimeout(None)
            except OSError:  # nobody listens there: the client learns the same
                _reset(client)
                continue
            threading.Thread(target=self._begin, args=(client, server), name="proxy-pump", daemon=True).start()

    def _begin(self, client: socket.socket, server: socket.socket) -> None:
        """Find out whether the connection is chosen, by what its client says first, and carry it both ways."""
        pair = frozenset((client, server))
        with self._lock:
            self._others |= pair
        if not self._only:
            self._choose(pair)
        threading.Thread(target=self._carry, args=(server, client, pair), name="proxy-pump", daemon=True).start()
        said = b""

        def listen(data: bytes) -> None:
            nonlocal said
            if len(said) < _BEGINNING:
                said += data
                if self._only in said:
                    self._choose(pair)

        self._carry(client, server, pair, listen)

    def _choose(self, pair: frozenset[socket.socket]) -> None:
        with self._lock:
            if pair <= self._others:
                self._others -= pair
                self._open |= pair
                self.chosen += 1

    def _carry(
        self,
        source: socket.socket,
        sink: socket.socket,
        pair: frozenset[socket.socket],
        listen: Callable[[bytes], None] = lambda data: None,
    ) -> None:
        try:
            while data := source.recv(_CHUNK):
                listen(data)
                if pair <= self._open:
                    self._flowing.wait()
                    time.sleep(self.delay_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0))
                sink.sendall(data)
        except OSError:  # cut, or the other side is gone
            pass
        finally:
            with self._lock:
                self._open -= {source, sink}
                self._others -= {source, sink}
            for sock in (source, sink):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        # A thread that waits in recv() keeps the connection alive over close(); this wakes it.
        sock.shutdown(socket.SHUT_RD)
    sock.close()
