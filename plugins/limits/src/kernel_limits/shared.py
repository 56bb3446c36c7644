"""Revokes kept by the broker, so that they hold for workers that start later. Imports nothing of the kernel.

    Redis    zset  kw.revoked   task id -> unix time until which it is revoked (kombu's key prefix before it)
    SQLite   table kw_revoked   the same
    AMQP     stream kw.revoked  see kernel_broker_amqp.revokes

Written by every worker that hears a revoke, and by clients of `kernel_app`; read when a worker connects. What has expired
is kept, too: see `revokes`. Each object belongs to one thread. Methods raise the builtin `ConnectionError` when the broker is away or refuses.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .revokes import KEPT_S

if TYPE_CHECKING:
    import sqlite3

    from kernel_result_redis.connection import Connection

AMQP = "kernel_broker_amqp.revokes"
KEPT = 50_000
"""Ids the broker keeps; the oldest are forgotten first."""


class SharedRevokes(Protocol):
    """Built as `SharedRevokes(url: str, options: Mapping)` with `broker_transport_options`; opens nothing."""

    takes_copies: bool
    """Whether workers write down what they hear as well: where the same id twice is one entry."""

    def add(self, ids: Iterable[str], until: float) -> None:
        """Keep ids until that unix time."""

    def read(self) -> list[tuple[str, float]]:
        """All that are kept, oldest first."""

    def close(self) -> None:
        """Close the connection. Idempotent; it is opened again when it is needed."""


class RedisRevokes:
    """See `SharedRevokes`."""

    takes_copies = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        from kernel_broker_redis.layout import Layout
        from kernel_result_redis.server import parse

        self._server = parse(url, options)
        self._key = Layout(options, self._server.db).prefix + "kw.revoked"
        self._connection: Connection | None = None

    def add(self, ids: Iterable[str], until: float) -> None:
        """One round trip."""
        members: list[Any] = []
        for task_id in ids:
            members += (until, task_id)
        commands: list[tuple[Any, ...]] = [
            ("ZADD", self._key, *members[at : at + 2000]) for at in range(0, len(members), 2000)
        ]
        commands += [
            ("ZREMRANGEBYSCORE", self._key, "-inf", time.time() - KEPT_S),
            ("ZREMRANGEBYRANK", self._key, 0, -KEPT - 1),
        ]
        self._call(commands)

    def read(self) -> list[tuple[str, float]]:
        """One round trip."""
        (rows,) = self._call([("ZRANGEBYSCORE", self._key, time.time() - KEPT_S, "+inf", "WITHSCORES")])
        return [(member.decode("utf-8", "replace"), float(score)) for member, score in rows]

    def _call(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        from kernel_result_redis.connection import Connection
        from kernel_result_redis.errors import ReplyError

        connection = self._connection
        if connection is None or not connection.is_idle():
            self.close()
            connection = self._connection = Connection.open(self._server, "kw:revokes")
        replies = connection.pipeline(commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply.explain(self._server)
        return replies

    def close(self) -> None:
        """See `SharedRevokes`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class SqliteRevokes:
    """See `SharedRevokes`."""

    takes_copies = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        from kernel_result_sqlite.database import Database, Schema
        from kernel_result_sqlite.location import parse_url

        statements = ("CREATE TABLE IF NOT EXISTS kw_revoked (id TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID",)
        self._database = Database(parse_url(url), Schema("kw_revoked", statements))

    def add(self, ids: Iterable[str], until: float) -> None:
        """One transaction."""
        rows = [(task_id, until) for task_id in ids]

        def operation(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO kw_revoked (id, until) VALUES (?, ?)", rows)
            connection.execute("DELETE FROM kw_revoked WHERE until <= ?", (time.time() - KEPT_S,))
            connection.execute(
                "DELETE FROM kw_revoked WHERE id IN (SELECT id FROM kw_revoked ORDER BY until DESC LIMIT -1 OFFSET ?)",
                (KEPT,),
            )

        self._database.write(operation)

    def read(self) -> list[tuple[str, float]]:
        """See `SharedRevokes`."""

        def operation(connection: sqlite3.Connection) -> list[tuple[str, float]]:
            query = "SELECT id, until FROM kw_revoked WHERE until > ? ORDER BY until"
            return connection.execute(query, (time.time() - KEPT_S,)).fetchall()

        return self._database.read(operation)

    def close(self) -> None:
        """See `SharedRevokes`."""
        self._database.close()


def open_shared(url: str, options: Mapping[str, Any]) -> SharedRevokes | None:
    """Where a broker keeps revokes; None when it keeps none.

    :raises ValueError: the URL or an option makes no sense.
    """
    kind = _KINDS.get(url.partition("://")[0].lower())
    if kind == AMQP:
        try:
            kind = importlib.import_module(AMQP).AmqpRevokes
        except ImportError:  # another driver of the same scheme
            return None
    return None if kind is None else kind(url, options)


_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("redis", "rediss", "unix", "redis+socket"), RedisRevokes),
    "sqlite": SqliteRevokes,
    **dict.fromkeys(("amqp", "pyamqp", "amqps"), AMQP),
}
