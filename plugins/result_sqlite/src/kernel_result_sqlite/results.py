"""The result backend: one row per task in one SQLite file. Imports nothing of the kernel.

Any thread, any process of one machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .location import parse_url
from .watch import WatchPool

if TYPE_CHECKING:
    import sqlite3

    from .database import Database

SCHEMA = (
    # The payloads lie in the order of storing, so that a burst fills few pages; only the index is random.
    """CREATE TABLE IF NOT EXISTS kw_result (
        number     INTEGER PRIMARY KEY,
        task_id    TEXT NOT NULL UNIQUE,
        state      TEXT NOT NULL,
        payload    BLOB NOT NULL,
        expires_at REAL             -- unix time; NULL = never
    )""",
    """CREATE INDEX IF NOT EXISTS kw_result_expiry ON kw_result (expires_at) WHERE expires_at IS NOT NULL""",
)

STORE = """
    INSERT INTO kw_result (task_id, state, payload, expires_at) VALUES (?, ?, ?, ?)
    ON CONFLICT (task_id) DO UPDATE
    SET state = excluded.state, payload = excluded.payload, expires_at = excluded.expires_at
    WHERE excluded.state = 'SUCCESS'
        OR state NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')
        OR (excluded.state <> 'RETRY' AND state <> 'SUCCESS')
        OR kw_result.expires_at <= ?"""
FETCH = "SELECT payload FROM kw_result WHERE task_id = ? AND (expires_at IS NULL OR expires_at > ?)"
FORGET = "DELETE FROM kw_result WHERE task_id = ?"
EXPIRE = """
    DELETE FROM kw_result WHERE number IN (
        SELECT number FROM kw_result WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"""

EXPIRY_CHECK_S = 10.0
EXPIRED_AT_ONCE = 100
"""Deleted by one `store`: a bounded delay for it. As it is more than a usual burst, deleting keeps up with storing."""


class Result(Protocol):
    """What is stored: `kernel_worker.types.StoredResult` has this shape."""

    task_id: str
    state: str
    payload: bytes
    expires: float | None


class SqliteResults:
    """Task states in one SQLite file.

    :param url: `sqlite:///kw.db`, see `location`.
    :param settings: the application's; none matters here.
    :raises ValueError: the URL is wrong.

    Every method but `close` raises ConnectionError when the file cannot be used.
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._location = parse_url(url)
        self._opened: Database | None = None
        self._watches = WatchPool(self._location.path)
        self._next_expiry = 0.0  # time.monotonic()

    def store(self, results: Sequence[Result]) -> None:
        """Store all in one transaction. A stored SUCCESS is never replaced by another state, no final
        state by a RETRY, unless it had expired."""
        if not results:
            return
        now = time.time()
        rows = [(each.task_id, each.state, each.payload, _expiry(now, each.expires), now) for each in results]
        expiring = time.monotonic() >= self._next_expiry

        def operation(connection: sqlite3.Connection) -> int:
            connection.executemany(STORE, rows)
            return connection.execute(EXPIRE, (now, EXPIRED_AT_ONCE)).rowcount if expiring else 0

        deleted = self._database().write(operation)
        if expiring and deleted < EXPIRED_AT_ONCE:  # else there may be more: go on with the next burst
            self._next_expiry = time.monotonic() + EXPIRY_CHECK_S

    def fetch(self, task_id: str) -> bytes | None:
        """The stored task meta (JSON), or None."""

        def operation(connection: sqlite3.Connection) -> bytes | None:
            row: tuple[bytes] | None = connection.execute(FETCH, (task_id, time.time())).fetchone()
            return None if row is None else row[0]

        return self._database().read(operation)

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        """Wait until a meta for which `is_final(meta)` holds is stored; None after `timeout` seconds.

        Woken by the system when the file is written to, see `watch`. Blocks its thread.
        """
        database = self._database()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        began = time.monotonic()
        looked = False
        with self._watches.borrow() as watch:
            while True:
                seen = database.version()
                meta = self.fetch(task_id)
                if meta is not None and is_final(meta):
                    return meta
                if looked:
                    watch.rest(time.monotonic() - began, deadline - time.monotonic())
                looked = True
                while database.version() == seen:
                    now = time.monotonic()
                    if now >= deadline:
                        return None
                    watch.wait(now - began, deadline - now)

    def forget(self, task_id: str) -> None:
        """Delete what is stored of a task; nothing happens if there is nothing."""
        self._database().write(lambda connection: connection.execute(FORGET, (task_id,)))

    def close(self) -> None:
        """Close the connection. Idempotent; the next call opens it again."""
        if self._opened is not None:
            self._opened.close()
        self._watches.close()

    def _database(self) -> Database:
        database = self._opened
        if database is None:
            from .database import Database, Schema

            # Two threads may both come here first: one of the two is dropped, unopened.
            database = self._opened = Database(self._location, Schema("kw_result", SCHEMA))
        return database


def _expiry(now: float, seconds: float | None) -> float | None:
    return None if seconds is None or math.isinf(seconds) else now + seconds
