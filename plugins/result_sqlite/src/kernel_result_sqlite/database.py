"""One SQLite file, opened and shared the way all of kw does it: write-ahead log, short transactions,
patience with other processes, no connection ever used across a fork.

Imports nothing of the kernel. Used by the result backend here and by the embedded broker, which import
it when they first need the file: sqlite3 is loaded only by who uses it. Any thread may call any method.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from .failures import FileRefused, explain, is_busy, is_of_the_file
from .location import Location

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

FILE_VERSION = 2
"""Version of all of kw's tables in one file (`PRAGMA user_version`)."""
OLDEST_SQLITE = (3, 24)
"""Has UPSERT; the oldest that Python 3.11 is packaged with is 3.26."""
PATIENCE_S = 5.0
"""How long a call goes on trying while another process holds the file."""
LOG_BYTES = 16 * 1024 * 1024
"""Size from which on the log is copied into the file and started over. Larger means fewer flushes to disk, which
are what a publish waits for; smaller means less to look through for readers.

Not left to SQLite's automatic checkpoints: those only start the log over when nobody has written since. Under
constant load somebody always has, so the log grows without end and each commit copies and flushes again."""
LOG_CHECK_WRITES = 16
"""Transactions of one connection between two looks at the size of the log."""
LOG_PATIENCE_MS = 200
"""How long the one who does it waits for the others."""
LOG_RETRY_S = (0.1, 5.0)
"""Before it tries again, first and at last: somebody may be reading for long, and keep the log from being cut."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.0002, 0.005
"""Pauses between two tries at a locked file. A transaction takes some 0.1 to 2 ms."""

_inherited: list[_Handle] = []
"""Connections found after a fork. Kept for ever: closing one would run SQLite's shutdown of a file that the
parent is using, and using one would corrupt it (sqlite.org/howtocorrupt.html, section 2.6)."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables of one part of kw.

    :param marker: one of the tables; all are created in one transaction.
    :param statements: create them; each says IF NOT EXISTS.
    """

    marker: str
    statements: Sequence[str]


class _Handle:
    """A connection of one process, and the lock that lets its threads take turns."""

    __slots__ = ("connection", "file", "lock", "openings", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self.file: tuple[int, int] | None = None
        self.openings = 0

    def discard(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class Database:
    """One connection to one file, opened at first use and opened again after a failure or a fork.

    :param gate: held during write transactions; connections of one process that share one hand the file
        to each other at once, instead of by polling its lock.

    Every method raises `FileUnavailable` or `FileRefused` of `failures`.
    """

    def __init__(self, location: Location, schema: Schema, gate: AbstractContextManager[object] | None = None) -> None:
        self.location = location
        self._schema = schema
        self._gate = gate or nullcontext()
        self._handle = _Handle()
        self._writes = 0
        self._next_cut = 0.0  # time.monotonic()
        self._cut_pause_s = LOG_RETRY_S[0]

    def read(self, operation: Operation[T]) -> T:
        """Call `operation` with the connection; again from its start while the file is locked."""
        return self._persevere(operation, nullcontext())

    def write(self, operation: Operation[T]) -> T:
        """Call `operation` in a transaction of its own, which holds the file's one write lock.

        All or nothing: committed when it returns, rolled back when it raises. It may be called again
        from its start when the file was locked.
        """

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            value = operation(connection)
            connection.execute("COMMIT")
            self._writes += 1
            if self._writes % LOG_CHECK_WRITES == 1:
                self._cut_log(connection)
            return value

        return self._persevere(transaction, self._gate)

    def version(self) -> tuple[int, int, int]:
        """Differs from the one before when anybody has committed something. Takes some 10 µs."""
        number = self.read(_data_version)
        # SQLite counts what other connections commit, and each connection counts from another start.
        return self._handle.openings, number, self._writes

    def close(self) -> None:
        """Close the connection; the next call opens it again. Idempotent."""
        handle = self._mine()
        with handle.lock:
            handle.discard()

    # -- inside

    def _mine(self) -> _Handle:
        handle = self._handle
        if handle.pid != os.getpid():
            # A thread of the parent may have held the lock at the fork: the child needs a new one as well.
            _inherited.append(handle)
            handle = self._handle = _Handle()
        return handle

    def _persevere(self, operation: Operation[T], gate: AbstractContextManager[object]) -> T:
        deadline = 0.0
        pause_s = SHORTEST_PAUSE_S
        while True:
            handle = self._mine()
            try:
                with handle.lock, gate:
                    return self._attempt(handle, operation)
            except sqlite3.Error as error:
                if not is_of_the_file(error):
                    raise
                now = time.monotonic()
                deadline = deadline or now + PATIENCE_S
                if not is_busy(error) or now > deadline:
                    raise explain(self.location.path, error, PATIENCE_S) from error
            # Random, and not SQLite's own fixed steps: several writers must not keep meeting each other.
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _attempt(self, handle: _Handle, operation: Operation[T]) -> T:
        # Opened anew also when the file was deleted or replaced: going on with a file that nobody can
        # find any more would lose what is written.
        if handle.connection is None or handle.file != _identity(self.location.path):
            handle.discard()
            handle.connection = self._connect()
            handle.file = _identity(self.location.path)
            handle.openings += 1
        try:
            return operation(handle.connection)
        except sqlite3.Error as error:
            if is_busy(error):
                _roll_back(handle)
            else:
                handle.discard()
            raise
        except BaseException:
            _roll_back(handle)
            raise

    def _connect(self) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise FileRefused(f"SQLite {sqlite3.sqlite_version} is too old", f"{oldest} or newer is needed")
        if _identity(self.location.path) is None:
            _create(self.location.path)
        # No busy time-out of SQLite's own: `_persevere` waits with shorter steps.
        connection = sqlite3.connect(self.location.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        path = self.location.path
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found not in (0, FILE_VERSION):  # 0: new, or without any of our tables
            raise FileRefused(
                f"{path} has schema version {found}, this program knows {FILE_VERSION}",
                "it belongs to another version of kernel-worker, or to another program: upgrade, or name another file",
            )
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":  # the mode is kept in the file: asking first, because setting it needs the file alone
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise FileRefused(f"{path} cannot have a write-ahead log here", "use a local disk, not a network folder")
        for pragma in (
            f"synchronous = {self.location.synchronous}",
            "wal_autocheckpoint = 0",
            "secure_delete = OFF",  # some builds overwrite what is deleted, which doubles the writing
            "temp_store = MEMORY",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self._create_tables(connection)

    def _cut_log(self, connection: sqlite3.Connection) -> None:
        """Make a log that has grown long start over, keeping other writers out meanwhile: some 20 to 50 ms."""
        now = time.monotonic()
        try:
            if now < self._next_cut or os.stat(self.location.path + "-wal").st_size < LOG_BYTES:
                return
            connection.execute(f"PRAGMA busy_timeout = {LOG_PATIENCE_MS}")
            was_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute("PRAGMA busy_timeout = 0")
            self._cut_pause_s = min(2 * self._cut_pause_s, LOG_RETRY_S[1]) if was_busy else LOG_RETRY_S[0]
            self._next_cut = now + self._cut_pause_s
        except (OSError, sqlite3.Error):
            pass  # the transaction before it is committed; if the file is in trouble, the next one will say so

    def _create_tables(self, connection: sqlite3.Connection) -> None:
        known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        if connection.execute(known, (self._schema.marker,)).fetchone():
            return
        connection.execute("BEGIN IMMEDIATE")  # several processes may come here at once; IF NOT EXISTS does the rest
        for statement in self._schema.statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {FILE_VERSION}")
        connection.execute("COMMIT")


def _data_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _roll_back(handle: _Handle) -> None:
    if handle.connection is not None and handle.connection.in_transaction:
        try:
            handle.connection.execute("ROLLBACK")
        except sqlite3.Error:
            handle.discard()  # closing rolls back as well


def _identity(path: str) -> tuple[int, int] | None:
    """Which file has this name now."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create(path: str) -> None:
    """Make an empty file that others cannot read; SQLite alone would give it 0644.

    Under another name first: closing a descriptor of the file itself would drop the locks that another
    connection of this process may have on it by then (sqlite.org/howtocorrupt.html, section 2.2).
    """
    draft = f"{path}.{os.getpid()}.{threading.get_ident()}.new"
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640))
    except OSError:
        return  # SQLite meets the same obstacle, and its error is explained
    try:
        os.link(draft, path)
    except OSError:
        pass  # another process was first, or the file system has no links: then SQLite creates it
    finally:
        os.unlink(draft)
