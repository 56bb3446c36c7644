"""Revokes kept by Redis: zset `kw.revoked` (kombu's key prefix before it), task id -> unix time until which it is revoked.

Imports nothing of the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from kernel_result_redis.connection import Connection
from kernel_result_redis.errors import ReplyError
from kernel_result_redis.server import parse

from .layout import Layout

KEPT = 50_000
"""Ids that are kept; the oldest are forgotten first."""
KEPT_S = 366 * 86_400.0
"""Those that expired longer ago are forgotten, too."""


class RedisRevokes:
    """See `kernel_worker.drivers.RevokeStore`."""

    takes_copies = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
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
        """See `RevokeStore`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
