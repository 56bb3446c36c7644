"""Fan-out: what is said on a channel is heard by all who listen at that time. Own connection per listener."""

from __future__ import annotations

import sqlite3
import time

from kernel_result_sqlite.database import Database
from kernel_result_sqlite.watch import Watch

KEEP_S = 60.0
"""How long a broadcast stays readable. A listener that looks less often misses some."""

SAY = "INSERT INTO kw_broadcast (channel, body, sent_at) VALUES (?, ?, ?)"
FORGET = "DELETE FROM kw_broadcast WHERE number <= (SELECT max(number) FROM kw_broadcast WHERE sent_at < ?)"
LAST = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'kw_broadcast'"
HEAR = "SELECT number, body FROM kw_broadcast WHERE number > ? AND channel = ? ORDER BY number"


def say(connection: sqlite3.Connection, channel: str, body: bytes) -> None:
    """Put one broadcast on a channel, and forget old ones. Inside a transaction."""
    now = time.time()
    connection.execute(FORGET, (now - KEEP_S,))
    connection.execute(SAY, (channel, body, now))


class Listener:
    """Hears what is said on one channel from now on. `receive` on one thread; the rest from any.

    :raises kernel_result_sqlite.failures.FileUnavailable: in every method but `close`.
    """

    def __init__(self, database: Database, channel: str) -> None:
        self._database = database
        self._channel = channel
        self._last = int(database.read(_last_number))
        self._watch = Watch(database.location.path, can_wake=True)
        self._interrupted = False

    def receive(self, timeout: float) -> list[bytes]:
        """What was said since the last call, oldest first, waiting at most `timeout` seconds for the first.

        :return: [] on time-out or after `interrupt()`.
        """
        began = time.monotonic()
        looked = False
        while not self._interrupted:
            seen = self._database.version()
            if bodies := self._hear():
                return bodies
            if looked:
                self._watch.rest(time.monotonic() - began, timeout)
            looked = True
            while not self._interrupted and self._database.version() == seen:
                idle_s = time.monotonic() - began
                if idle_s >= timeout:
                    return []
                self._watch.wait(idle_s, timeout - idle_s)
        self._interrupted = False
        return []

    def interrupt(self) -> None:
        """Make a waiting `receive`, or the next one, return at once."""
        self._interrupted = True
        self._watch.wake()

    def close(self) -> None:
        """Close the connection. Once, and not while another thread is in `receive`."""
        self._watch.close()
        self._database.close()

    def _hear(self) -> list[bytes]:
        rows = self._database.read(lambda connection: connection.execute(HEAR, (self._last, self._channel)).fetchall())
        if rows:
            self._last = rows[-1][0]
        return [body for _, body in rows]


def _last_number(connection: sqlite3.Connection) -> int:
    return int(connection.execute(LAST).fetchone()[0])
