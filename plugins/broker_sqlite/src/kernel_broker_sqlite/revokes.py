"""Revokes kept in the broker's file: table `kw_revoked`, task id and the unix time until which it is revoked.

Imports nothing of the kernel.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any

from kernel_result_sqlite.database import Database, Schema
from kernel_result_sqlite.location import parse_url

KEPT = 50_000
"""Ids that are kept; the oldest are forgotten first."""
KEPT_S = 366 * 86_400.0
"""Those that expired longer ago are forgotten, too."""


class SqliteRevokes:
    """See `kernel_worker.drivers.RevokeStore`."""

    takes_copies = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
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
        """See `RevokeStore`."""

        def operation(connection: sqlite3.Connection) -> list[tuple[str, float]]:
            query = "SELECT id, until FROM kw_revoked WHERE until > ? ORDER BY until"
            return connection.execute(query, (time.time() - KEPT_S,)).fetchall()

        return self._database.read(operation)

    def close(self) -> None:
        """See `RevokeStore`."""
        self._database.close()
