"""One connection to a Redis server: RESP3 over hiredis, nothing automatic.

redis-py is not used on purpose: importing it costs 20 MB and 0.13 s in every process (measured), more than
the rest of an idle worker, and its connections reconnect and retry by themselves, which a reserve step must not.

Not thread-safe: whoever uses a connection owns it. Any error in the middle of a call closes it, an exception
raised from outside included (time limits), so that no reply is ever read by the wrong caller.
"""

from __future__ import annotations

import re
import select
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis

from .dialling import dial
from .errors import RedisRefused, RedisUnavailable, ReplyError
from .server import Server

_BUFFER = 65536
_TLS_S = 0.02  # patience with a readable TLS socket: what arrived may be no data, but a session ticket
_MORE = object()  # what the parser gives while a reply is not complete
pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
"""One command, a tuple of str, bytes, int and float, as the server reads it."""


class Connection:
    """An open connection. Made by `Connection.open`.

    `pushes` collects what the server sent unasked: invalidations, messages of subscribed channels. One that nobody holds
    any more is closed, as when an application is dropped without `close`.
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_dropped",
        "_poll",
        "_reader",
        "_sock",
        "is_replica",
        "pushes",
        "server",
        "software",
        "version",
    )

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.pushes: list[Any] = []
        self.version: tuple[int, ...] = ()
        self.software = ""
        self.is_replica = False
        self._sock: socket.socket | None = sock
        self._dropped = weakref.finalize(self, sock.close)
        self._dropped.atexit = False
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_MORE)
        self._buffer = bytearray(_BUFFER)
        self._poll = _poll_of(sock)

    @classmethod
    def open(cls, server: Server, name: str = "") -> Connection:
        """Connect, authenticate and select the database; the name of the host is resolved anew.

        :param name: shown by CLIENT LIST, unless the server's `client_name` option says another.
        :raises RedisUnavailable: no connection within `server.connect_timeout` seconds.
        :raises RedisRefused: wrong credentials, no RESP3, no such database, unverifiable certificate.
        """
        connection = cls(server, dial(server))
        try:
            connection._greet(name)
        except ReplyError as error:
            connection.close()
            raise _explain_greeting(error, server) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _greet(self, name: str) -> None:
        server = self.server
        hello: list[Any] = ["HELLO", 3]
        try:
            password = server.current_password()
        except OSError as error:
            raise RedisUnavailable(f"{server}: the password file {server.password_file}: {error.strerror}") from None
        if server.username or password:
            hello += ["AUTH", server.username or "default", password]
        name = re.sub(r"[^!-~]", "_", server.client_name or name)  # what CLIENT SETNAME takes
        if name:
            hello += ["SETNAME", name]
        assert self._sock is not None
        self._sock.settimeout(server.connect_timeout)
        about = self.call(*hello)
        if server.db:
            self.call("SELECT", server.db)
        self._sock.settimeout(server.timeout)
        self.software = about.get(b"server", b"").decode("ascii", "replace")
        self.is_replica = about.get(b"role") == b"replica"
        self.version = tuple(int(each) for each in re.findall(rb"\d+", about.get(b"version", b""))[:3])

    # ------------------------------------------------------------------ calls

    def call(self, *command: Any) -> Any:
        """Send one command and give its reply.

        :raises ReplyError: the server refused the command.
        :raises RedisUnavailable: the connection is gone; whether the command was carried out is unknown.
        """
        self.send(pack(command))
        reply = self.read()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def pipeline(self, commands: Sequence[Iterable[Any]]) -> list[Any]:
        """Send all commands in one write and give their replies; errors are `ReplyError` objects among them."""
        self.send(b"".join(pack(tuple(command)) for command in commands))
        return [self.read() for _ in commands]

    def send(self, data: bytes) -> None:
        """Write packed commands, see `pack`. Each needs its `read`."""
        if self._sock is None:
            raise RedisUnavailable(f"{self.server}: the connection is closed")
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise self._lost(error) from None
        except BaseException:
            self.close()
            raise

    def read(self) -> Any:
        """The next reply, which may be a `ReplyError`. What comes unasked is put into `pushes`."""
        try:
            while True:
                reply = self._reader.gets()
                if reply is _MORE:
                    self._receive()
                elif type(reply) is hiredis.PushNotification:
                    self.pushes.append(reply)
                else:
                    return reply
        except RedisUnavailable:
            raise
        except hiredis.ProtocolError as error:
            self.close()
            raise RedisUnavailable(f"{self.server}: the answer is not Redis protocol: {error}") from None
        except BaseException:
            self.close()
            raise

    def read_push(self, timeout: float) -> Any:
        """The next thing sent unasked, or None after `timeout` seconds. Cooperative under gevent and eventlet."""
        if self.pushes:
            return self.pushes.pop(0)
        deadline = time.monotonic() + timeout
        try:
            while True:
                reply = self._reader.gets()
                if reply is not _MORE:
                    return reply
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._receive(left)
        except RedisUnavailable:
            raise
        except BaseException:
            self.close()
            raise

    def _receive(self, patience: float | None = None) -> None:
        """Take what the socket has. With `patience`, silence for so many seconds is no error."""
        sock = self._sock
        if sock is None:
            raise RedisUnavailable(f"{self.server}: the connection is closed")
        try:
            if patience is None:
                count = sock.recv_into(self._buffer)
            else:
                sock.settimeout(patience)
                try:
                    count = sock.recv_into(self._buffer)
                finally:
                    sock.settimeout(self.server.timeout)
        except TimeoutError as error:
            if patience is None:
                raise self._lost(error) from None
            return
        except OSError as error:
            raise self._lost(error) from None
        if not count:
            raise self._lost(None)
        self._reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]  # takes any buffer

    def _lost(self, error: OSError | None) -> RedisUnavailable:
        self.close()
        if error is None:
            return RedisUnavailable(f"{self.server}: the server closed the connection")
        if isinstance(error, TimeoutError):
            return RedisUnavailable(f"{self.server}: no answer within {self.server.timeout:g} s")
        return RedisUnavailable(f"{self.server}: {error.strerror or error}")

    # ------------------------------------------------------------------ waiting, state

    def wait(self, timeout: float, wake: int) -> bool:
        """Wait until the server sends something or the descriptor `wake` is readable; at most `timeout` seconds.

        :return: whether the server sent something. Not cooperative: for the kernel's threads only.
        """
        if self._sock is None:
            raise RedisUnavailable(f"{self.server}: the connection is closed")
        self._collect_pushes()
        if self.pushes or self._is_pending():
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake, select.POLLIN)
        ready = poll.poll(max(0.0, timeout) * 1000)
        return any(fd != wake for fd, _ in ready)

    def drain_pushes(self) -> None:
        """Take in what the server sent unasked, without waiting. To be called when no reply is outstanding."""
        self._collect_pushes()
        while self._has_arrived():
            self._receive(_TLS_S)
            self._collect_pushes()

    def _collect_pushes(self) -> None:
        while (push := self._reader.gets()) is not _MORE:
            self.pushes.append(push)

    def is_idle(self) -> bool:
        """Whether the connection is open and nothing has arrived: it can be used again.

        A server that closed it, or restarted, shows here, before a command is sent and its fate unknown.
        """
        return not (self._sock is None or self.pushes or self._reader.has_data() or self._has_arrived())

    def answers(self, within_s: float) -> bool:
        """Ask for a sign of life; a connection that gives none is closed. For one that nobody used for long: what
        stands in between may have forgotten it without telling anybody."""
        if self._sock is None:
            return False
        try:
            self._sock.settimeout(min(within_s, self.server.timeout))
            self.call("PING")
            self._sock.settimeout(self.server.timeout)
        except (RedisUnavailable, ReplyError):
            self.close()
            return False
        return True

    def _has_arrived(self) -> bool:
        """Whether a read of the socket would give something at once; its end counts as well."""
        if self._sock is None or self._is_pending():
            return True
        if self._poll is not None:
            return bool(self._poll.poll(0))
        return bool(select.select([self._sock], [], [], 0)[0])

    def _is_pending(self) -> bool:
        """Whether TLS has decrypted more than was read."""
        pending = getattr(self._sock, "pending", None)
        return pending is not None and bool(pending())

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    def close(self) -> None:
        """Close the socket; in a forked child this does not disturb the parent's connection. Idempotent."""
        self._sock = None
        self._dropped()


def _poll_of(sock: socket.socket) -> select.poll | None:
    """A poll object for the socket; None where eventlet has removed `select.poll`."""
    if not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll


def _explain_greeting(error: ReplyError, server: Server) -> RedisUnavailable | RedisRefused:
    text = str(error)
    if "unknown command" in text or error.code == "NOPROTO":
        return RedisRefused(f"{server}: the server does not speak RESP3", "use Redis 6.2 or newer")
    if "AUTH <password> called without any password" in text:
        return RedisRefused(f"{server}: the server has no password, but the URL has", "remove it from the URL")
    return error.explain(server)
