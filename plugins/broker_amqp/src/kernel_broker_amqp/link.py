"""One AMQP connection: py-amqp opens it (TLS, login, tuning), then frames are read and written here.

py-amqp reads frame by frame and is not made for two threads. Here one thread reads what the socket holds, all of
it at once, while another writes under a lock: acks never wait for a fetch, nor a fetch for acks.

Any thread may write. Reading is one thread's at a time, whoever holds `reading`.
"""

from __future__ import annotations

import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from . import wire
from .errors import AmqpRefused, AmqpUnavailable
from .server import Addresses, Server
from .wire import Received

_RECEIVE_BYTES = 1 << 20
_SILENCE = 1.1  # intervals without a word: the server sends a heartbeat every half interval
_REFUSALS = {403: "check user, password and rights", 530: "check that the vhost exists and may be used"}


class Link:
    """An open connection.

    :ivar blocked: why the server takes no publishes now (memory or disk alarm); "" when it does.
    """

    def __init__(self, server: Server, connection: Any) -> None:
        self.server = server
        self.frame_max: int = connection.frame_max
        self.blocked = ""
        self.reading = threading.Lock()
        self._connection = connection  # keeps the socket open
        self._socket: Any = connection.transport.sock
        # One that nobody holds any more is closed, as when an application is dropped without `close`.
        weakref.finalize(self, self._socket.close).atexit = False
        self._is_tls = hasattr(self._socket, "pending")
        self._parser = wire.Parser(bytes(getattr(connection.transport, "_read_buffer", b"")))
        self._writing = threading.Lock()
        self._error: Exception | None = None
        self._heartbeat_s: float = connection.heartbeat or 0.0
        self._heard_at = self._said_at = time.monotonic()
        self._socket.settimeout(server.deadline_s)

    @classmethod
    def open(cls, server: Server, name: str) -> Link:
        """Connect and log in, within the server's connect timeout for each step.

        :param name: shown in the server's list of connections.
        :raises AmqpUnavailable: no answer.
        :raises AmqpRefused: wrong password, no such vhost.
        """
        import amqp

        host = f"[{server.host}]" if ":" in server.host else server.host
        connection = amqp.Connection(
            host=f"{host}:{server.port}",
            userid=server.user,
            password=_secret(server),
            login_method=server.login_method,
            virtual_host=server.virtual_host,
            client_properties={"connection_name": server.client_name or name, "product": "kernel-worker"},
            ssl=dict(server.tls) if server.tls is not None else False,
            connect_timeout=server.connect_timeout_s,
            heartbeat=server.heartbeat_s,
            socket_settings={socket.TCP_USER_TIMEOUT: 15_000} if hasattr(socket, "TCP_USER_TIMEOUT") else None,
        )
        try:
            connection.connect()
        except amqp.AMQPError as error:
            connection.collect()
            text = _one_line(error.reply_text or type(error).__name__)
            code = error.reply_code or 0
            if code in _REFUSALS:
                raise AmqpRefused(f"{server}: {text}", code=code, hint=_REFUSALS[code]) from None
            raise AmqpUnavailable(f"{server}: {text}") from None
        except OSError as error:
            connection.collect()
            raise AmqpUnavailable(f"{server}: {_one_line(error) or type(error).__name__}") from None
        return cls(server, connection)

    @classmethod
    def open_any(cls, addresses: Addresses, name: str) -> Link:
        """Connect to the first address that answers, beginning with the one that did the last time.

        :raises AmqpUnavailable, AmqpRefused: none does; the error is the last one's.
        """
        failure: AmqpUnavailable | AmqpRefused | None = None
        for server in addresses.in_turn():
            try:
                link = cls.open(server, name)
            except (AmqpUnavailable, AmqpRefused) as error:
                failure = error
                continue
            addresses.prefer(server)
            return link
        assert failure is not None
        raise failure

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return int(self._socket.fileno())

    @property
    def is_open(self) -> bool:
        return self._error is None

    # ------------------------------------------------------------------ writing

    def send(self, data: bytes) -> None:
        """Write frames. Any thread.

        :raises AmqpUnavailable: the connection is lost, or takes nothing for as long as the deadline.
        """
        try:
            with self._writing:
                self._check()
                self._socket.sendall(data)
                self._said_at = time.monotonic()
        except (OSError, ValueError) as error:  # ValueError: a closed TLS socket
            if isinstance(error, AmqpUnavailable):
                raise
            raise self.fail(f"{_one_line(error) or type(error).__name__}") from None

    def beat(self) -> None:
        """Send a heartbeat if nothing was sent for a while; notice a server that has gone silent. Any thread."""
        if not self._heartbeat_s:
            return
        self._say_something()
        if self.reading.acquire(blocking=False):
            self.reading.release()
            self.check_silence()

    def _say_something(self) -> None:
        if time.monotonic() - self._said_at > self._heartbeat_s / 4:
            self.send(wire.HEARTBEAT)

    def check_silence(self) -> None:
        """:raises AmqpUnavailable: nothing came for longer than the heartbeat allows, and nothing waits to be read."""
        silent_s = time.monotonic() - self._heard_at
        if self._heartbeat_s and silent_s > self._heartbeat_s * _SILENCE and not self._is_readable(0.0):
            raise self.fail(f"silent for {silent_s:.0f} s")

    # ------------------------------------------------------------------ reading

    def receive(self, timeout: float, wake: int | None = None) -> list[Received]:
        """What has come, waiting up to `timeout` seconds for the first; [] also earlier, e.g. when `wake` is readable.

        With `reading` held. Closing by the server is answered and raised; blocking is noted.

        :param wake: a descriptor that ends the waiting.
        :raises AmqpUnavailable: the connection is lost.
        """
        self._check()
        if self._heartbeat_s:  # come back in time to notice silence
            timeout = min(timeout, self._heartbeat_s / 4)
        if not self._is_readable(timeout, wake):
            if self._heartbeat_s:
                self._say_something()
            self.check_silence()
            return []
        try:
            if self._is_tls:
                with self._writing:  # OpenSSL wants one thread at a time
                    data = self._socket.recv(_RECEIVE_BYTES)
            else:
                data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError:  # a TLS record that is not complete yet
            return []
        except (OSError, ValueError) as error:
            raise self.fail(_one_line(error) or type(error).__name__) from None
        if not data:
            raise self.fail("the server closed the connection")
        self._heard_at = time.monotonic()
        try:
            found = self._parser.feed(data)
        except wire.Unreadable as error:
            raise self.fail(str(error)) from None
        if any(each.channel == 0 for each in found):
            found = [each for each in found if each.channel or self._control(each)]
        return found

    def _is_readable(self, timeout: float, wake: int | None = None) -> bool:
        if self._is_tls and self._socket.pending():
            return True
        descriptors = [self.fileno()] if wake is None else [self.fileno(), wake]
        if descriptors[0] < 0:
            raise self.fail("closed")
        poll = select.poll()  # select() cannot watch descriptors above 1023
        for each in descriptors:
            poll.register(each, select.POLLIN)
        ready = poll.poll(max(0.0, timeout) * 1000)
        return any(descriptor == descriptors[0] for descriptor, _ in ready)

    def _control(self, received: Received) -> bool:
        """Handle what concerns the whole connection."""
        if received.method == wire.CONNECTION_CLOSE:
            code, text = wire.close_reason(received.arguments)
            try:
                self.send(wire.frame(0, wire.CONNECTION_CLOSE_OK))
            except AmqpUnavailable:
                pass  # it was about to end anyway
            raise self.fail(f"closed by the server: {code} {_one_line(text)}")
        if received.method == wire.CONNECTION_CLOSE_OK:
            raise self.fail("closed")
        if received.method == wire.CONNECTION_BLOCKED:
            reason, _ = wire.read_short(received.arguments, 0)
            self.blocked = _one_line(reason) or "no reason given"
        elif received.method == wire.CONNECTION_UNBLOCKED:
            self.blocked = ""
        return False

    def call(self, channel: int, request: bytes, answer: int) -> Received:
        """Send a request and wait for its answer on its channel; whatever else comes is dropped.

        For connections of one thread, which deliver nothing. Takes `reading`.

        :raises AmqpRefused: the server closed the channel instead.
        :raises AmqpUnavailable: the connection is lost or there is no answer in time.
        """
        with self.reading:
            self.send(request)
            return self.wait_for(channel, answer)

    def wait_for(self, channel: int, answer: int, other: Callable[[Received], None] | None = None) -> Received:
        """Read until a method comes on a channel. With `reading` held. Raises as `call` does."""
        result: Received | None = None

        def take(received: Received) -> None:
            nonlocal result
            if received.channel == channel and received.method == answer and result is None:
                result = received
            elif other is not None:
                other(received)

        self.wait_until(channel, lambda: result is not None, take)
        assert result is not None
        return result

    def wait_until(self, channel: int, is_done: Callable[[], bool], take: Callable[[Received], None]) -> None:
        """Read and hand over what comes until that was enough; silence for the deadline ends the connection. With
        `reading` held. Raises as `call` does, also when the server closes this channel."""
        deadline = time.monotonic() + self.server.deadline_s
        while not is_done():
            received = self.receive(deadline - time.monotonic())
            for each in received:
                if each.channel == channel and each.method == wire.CHANNEL_CLOSE:
                    raise self.channel_closed(each)
                take(each)
            if any(each.channel == channel for each in received):
                deadline = time.monotonic() + self.server.deadline_s
            elif time.monotonic() >= deadline:
                raise self.fail(f"no answer within {self.server.deadline_s:g} s")

    def open_channel(self, channel: int) -> None:
        """Open a channel. Raises as `call` does."""
        self.call(channel, wire.frame(channel, wire.CHANNEL_OPEN, b"\0"), wire.CHANNEL_OPEN_OK)

    def channel_closed(self, received: Received) -> AmqpRefused:
        """Answer a channel.close; the error to raise for it."""
        code, text = wire.close_reason(received.arguments)
        self.send(wire.frame(received.channel, wire.CHANNEL_CLOSE_OK))
        return AmqpRefused(f"{self.server}: {code} {_one_line(text)}", code=code)

    # ------------------------------------------------------------------ ending

    def _check(self) -> None:
        if self._error is not None:
            raise AmqpUnavailable(str(self._error))

    def fail(self, reason: str) -> AmqpUnavailable:
        """Give the connection up; the error to raise."""
        error = AmqpUnavailable(f"{self.server}: {reason}")
        if self._error is None:
            self._error = error
            try:
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits on it
            except (OSError, ValueError):
                pass  # it is gone already
        return error

    def close(self, within_s: float = 1.0) -> None:
        """Say good-bye and close, so that the server has seen everything that was sent. Never raises.

        :param within_s: for the server's answer. A socket that is closed before it may reset what is on its way.
        """
        try:
            if self._error is None and self.reading.acquire(timeout=1.0):
                try:
                    self.send(wire.frame(0, wire.CONNECTION_CLOSE, wire.GOOD_BYE))
                    deadline = time.monotonic() + within_s
                    while time.monotonic() < deadline:
                        self.receive(deadline - time.monotonic())
                finally:
                    self.reading.release()
        except AmqpUnavailable:
            pass  # the end is what was waited for
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptor without a word, e.g. in a forked child, whose parent goes on with the connection."""
        self._error = self._error or AmqpUnavailable(f"{self.server}: closed")
        try:
            self._socket.close()
        except OSError:
            pass


def _secret(server: Server) -> str:
    """The password, read again from its file where there is one."""
    if not server.password_file:
        return server.password
    try:
        with open(server.password_file, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise AmqpUnavailable(f"{server}: password_file {server.password_file!r} cannot be read: {reason}") from None


def _one_line(text: object) -> str:
    """Text of a server or the system, safe to print."""
    return " ".join(str(text).split())[:200].encode("ascii", "backslashreplace").decode()
