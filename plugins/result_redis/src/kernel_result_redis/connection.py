"""One connection to a Redis server: RESP3 over hiredis, nothing automatic.

redis-py is not used on purpose: importing it costs 20 MB and 0.13 s in every process (measured), more than
the rest of an idle worker, and its connections reconnect and retry by themselves, which a reserve step must not.

Not thread-safe: whoever uses a connection owns it. Any error in the middle of a call closes it, an exception
raised from outside included (time limits), so that no reply is ever read by the wrong caller.

    RedisUnavailable  (ConnectionError)   not reachable now, or lost: try again later
    RedisRefused      (ConnectionError)   reached, and it said no: wrong password, missing rights, too old
    ReplyError                            one command failed; the connection is fine
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis

from .server import Server

_BUFFER = 65536
_TLS_S = 0.02  # patience with a readable TLS socket: what arrived may be no data, but a session ticket
_MORE = object()  # what the parser gives while a reply is not complete
pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
"""One command, a tuple of str, bytes, int and float, as the server reads it."""
_AWAY = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN")
_REFUSED = ("ASK", "CROSSSLOT", "DENIED", "MOVED", "NOAUTH", "NOPERM", "NOPROTO", "WRONGPASS", "WRONGTYPE")
# Redis 6.2 wraps the code of an error inside a script into other text, so it is searched for
_CODE = re.compile(r"\b(" + "|".join(_AWAY + _REFUSED) + r")\b")
_HINTS = {
    "ASK": "Redis Cluster is not supported: use a server without cluster mode",
    "DENIED": "the server is in protected mode: give it a password, or let it listen on loopback only",
    "MOVED": "Redis Cluster is not supported: use a server without cluster mode",
    "NOAUTH": "put the password into the URL: redis://:password@host:6379/0",
    "NOPERM": "grant the user the commands and keys it needs",
    "OOM": "raise maxmemory of the server, or empty queues and results",
    "READONLY": "the server is a replica: the URL must lead to the primary",
    "WRONGPASS": "check user name and password in the URL",
    "WRONGTYPE": "another program uses this key: choose another queue name, database or global_keyprefix",
}


class RedisUnavailable(ConnectionError):
    """The server cannot be reached, the connection is lost, or it cannot work now."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RedisRefused(ConnectionError):
    """The server was reached and said no. `hint` says how to mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ReplyError(Exception):
    """The server answered one command with an error."""

    @property
    def code(self) -> str:
        """The word that names the kind of error: OOM, NOSCRIPT, ERR …"""
        text = str(self)[:300]
        found = _CODE.search(text)
        return found.group(1) if found else text.partition(" ")[0]

    def explain(self, server: Server) -> RedisUnavailable | RedisRefused:
        """The same as an error for the caller's caller."""
        text = str(self)[:300]
        message = f"{server}: {text}"
        if self.code in _AWAY or "max number of clients" in text:
            return RedisUnavailable(message, _HINTS.get(self.code, ""))
        return RedisRefused(message, _HINTS.get(self.code, ""))


class Connection:
    """An open connection. Made by `Connection.open`.

    `pushes` collects what the server sent unasked: invalidations, messages of subscribed channels.
    """

    __slots__ = ("_buffer", "_poll", "_reader", "_sock", "pushes", "server", "software", "version")

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.pushes: list[Any] = []
        self.version: tuple[int, ...] = ()
        self.software = ""
        self._sock: socket.socket | None = sock
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
        connection = cls(server, _dial(server))
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
        if server.username or server.password:
            hello += ["AUTH", server.username or "default", server.password]
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
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


def _poll_of(sock: socket.socket) -> select.poll | None:
    """A poll object for the socket; None where eventlet has removed `select.poll`."""
    if not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll


def _dial(server: Server) -> socket.socket:
    """A connected socket, within the connect timeout over all addresses of the host."""
    deadline = time.monotonic() + server.connect_timeout
    try:
        if server.path:
            return _connect(socket.AF_UNIX, server.path, server, deadline)
        error: OSError = OSError("the host has no address")
        for family, _, _, _, address in socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM):
            try:
                return _connect(family, address, server, deadline)
            except OSError as failed:
                error = failed
        raise error
    except OSError as failed:
        raise _explain_dialling(failed, server) from None


def _explain_dialling(error: OSError, server: Server) -> RedisUnavailable | RedisRefused:
    if type(error).__name__ == "SSLCertVerificationError":
        reason = getattr(error, "verify_message", "") or error.strerror
        return RedisRefused(
            f"{server}: the server's certificate cannot be verified: {reason}",
            "give the authority with ?ssl_ca_certs=/path/to/ca.pem",
        )
    if isinstance(error, TimeoutError):
        return RedisUnavailable(f"{server}: no connection within {server.connect_timeout:g} s")
    return RedisUnavailable(f"{server}: {error.strerror or error}")


def _connect(family: int, address: Any, server: Server, deadline: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _keep_alive(sock, server)
        sock.connect(address)
        if server.tls is not None:
            sock = server.tls.context().wrap_socket(sock, server_hostname=server.host)
        return sock
    except BaseException:
        sock.close()
        raise


def _keep_alive(sock: socket.socket, server: Server) -> None:
    """Have the system notice a dead peer after a minute, where nothing is sent meanwhile."""
    if not server.keepalive:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    chosen = {number: value for name, value in options.items() if (number := getattr(socket, name, None)) is not None}
    for number, value in (chosen | dict(server.keepalive_options)).items():
        sock.setsockopt(socket.IPPROTO_TCP, int(number), int(value))


def _explain_greeting(error: ReplyError, server: Server) -> RedisUnavailable | RedisRefused:
    text = str(error)
    if "unknown command" in text or error.code == "NOPROTO":
        return RedisRefused(f"{server}: the server does not speak RESP3", "use Redis 6.2 or newer")
    if "AUTH <password> called without any password" in text:
        return RedisRefused(f"{server}: the server has no password, but the URL has", "remove it from the URL")
    return error.explain(server)
