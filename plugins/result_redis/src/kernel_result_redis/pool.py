"""Idle connections for callers on any thread, greenlet or forked child. Used by the publisher and the results."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from .connection import Connection
from .errors import RedisUnavailable, ReplyError
from .server import Server

_FRESH_S = 0.1  # used so recently, a connection is not looked at before it is lent again: that costs 10 µs
_STALE_S = 10.0  # idle for longer, it is asked for a sign of life
_SIGN_S = 2.0  # in which that must come


class Pool:
    """Lends connections; the one used last is lent first, so that the others grow old and are few.

    Needs no lock: `deque.append` and `deque.pop` are atomic. A lent connection belongs to its borrower.

    :param keep: how many idle connections are kept open; more are opened when needed and closed afterwards.
    """

    def __init__(self, server: Server, keep: int = 10, name: str = "") -> None:
        self.server = server
        self.opened = 0  # how many connections were ever opened
        self._name = name
        self._idle: deque[tuple[Connection, float]] = deque(maxlen=max(1, keep))
        self._pid = os.getpid()

    def take(self) -> Connection:
        """An open connection on which nothing is outstanding. Raises as `Connection.open` does."""
        if self._pid != os.getpid():
            self._forget_parents()
        while True:
            try:
                connection, given_at = self._idle.pop()
            except IndexError:
                connection = Connection.open(self.server, self._name)
                self.opened += 1
                return connection
            idle_s = time.monotonic() - given_at
            if idle_s < _FRESH_S:
                return connection
            if connection.is_idle():
                if idle_s < _STALE_S or connection.answers(_SIGN_S):
                    return connection
                self.close()  # the others are older still
            connection.close()

    def give(self, connection: Connection) -> None:
        """Give a connection back after a complete exchange. One that was closed is dropped."""
        if connection.is_open:
            if len(self._idle) == self._idle.maxlen:
                connection.close()
            else:
                self._idle.append((connection, time.monotonic()))

    @contextlib.contextmanager
    def lend(self, connection: Connection | None = None) -> Iterator[Connection]:
        """A connection for one exchange, or the one that was taken already. Closed when the exchange does not end well, since what is
        outstanding on it is unknown then; and the idle ones with it when the server is away, or is not what it was:
        the next attempt shall ask anew where it is, and not try them one after the other."""
        connection = connection or self.take()
        try:
            yield connection
        except ReplyError:  # a complete answer
            self.give(connection)
            raise
        except RedisUnavailable:
            connection.close()
            self.close()
            raise
        except BaseException:
            connection.close()
            raise
        self.give(connection)

    def call(self, *command: Any) -> Any:
        """One command on any connection; an error of the server is raised as RedisUnavailable or RedisRefused."""
        with self.lend() as connection:
            try:
                return connection.call(*command)
            except ReplyError as error:
                raise error.explain(self.server) from None

    def close(self) -> None:
        """Close the idle connections. Idempotent; the pool can be used again."""
        while self._idle:
            self._idle.pop()[0].close()

    def _forget_parents(self) -> None:
        """After a fork: the sockets are the parent's. Closing the child's copies does not disturb it."""
        self._pid = os.getpid()
        self.close()
