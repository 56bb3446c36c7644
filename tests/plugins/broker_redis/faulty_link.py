"""A TCP link to a server that fails where a test wants it to: replies that never arrive, requests that arrive late."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class FaultyLink:
    """Forwards connections to `port`; `url` leads through it.

    `lose_replies` : what the server answers from then on is thrown away and the connections are broken.
    `hold_requests`: what is sent on the connections there are is kept until `release`, even if the client has gone;
                     new connections pass.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._loses = threading.Event()
        self._gates: list[threading.Event] = []
        self._start(self._accept)

    def lose_replies(self) -> None:
        self._loses.set()

    def hold_requests(self) -> None:
        for gate in self._gates:
            gate.clear()

    def release(self) -> None:
        """Let held requests reach the server, and let everything pass again."""
        self._loses.clear()
        for gate in self._gates:
            gate.set()

    def __enter__(self) -> FaultyLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += (client, server)
                gate = threading.Event()
                gate.set()
                self._gates.append(gate)
                self._start(self._requests, client, server, gate)
                self._start(self._replies, server, client)

    def _requests(self, client: socket.socket, server: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                gate.wait()
                server.sendall(data)

    def _replies(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self._loses.is_set():
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
