"""The tables of the embedded broker, and how a message gets into them. Imports nothing of the kernel.

`kw_message` holds the bytes of every message that exists, written once and never changed. Where a message
is in its life is a small row in exactly one of four tables, and every step moves that row from one to
another in one transaction:

    publish ──► kw_waiting ──fetch──► kw_held ──ACK──► gone, with its bytes
                    ▲  ▲                │ │ │
                    │  └──REQUEUE, dead─┘ │ └──DEAD──► kw_dead
                    └──due── kw_parked ◄──┘ DELAY

The order in a queue is priority, then id, and ids grow: a message that returns from anywhere comes before
all that were published after it, without any position being kept.
"""

from __future__ import annotations

import sqlite3

from kernel_result_sqlite.database import Schema

SCHEMA = Schema(
    marker="kw_message",
    statements=(
        """CREATE TABLE IF NOT EXISTS kw_message (
            id      INTEGER PRIMARY KEY,
            raw     BLOB NOT NULL,
            payload BLOB
        )""",
        # The table is its own index: fetching reads and deletes a run of neighbours.
        """CREATE TABLE IF NOT EXISTS kw_waiting (
            queue       TEXT NOT NULL,
            priority    INTEGER NOT NULL,   -- the lowest comes first, as with Celery on Redis
            id          INTEGER NOT NULL,
            attempts    INTEGER NOT NULL,
            returns     INTEGER NOT NULL,
            redelivered INTEGER NOT NULL,   -- 1: delivered before; 2: and its last holder died
            PRIMARY KEY (queue, priority, id)
        ) WITHOUT ROWID""",
        """CREATE TABLE IF NOT EXISTS kw_held (
            id          INTEGER PRIMARY KEY,
            holder      INTEGER NOT NULL,   -- kw_holder.id
            reservation INTEGER NOT NULL,   -- random, one per fetch: tells two deliveries to one holder apart
            queue       TEXT NOT NULL,
            priority    INTEGER NOT NULL,
            attempts    INTEGER NOT NULL,
            returns     INTEGER NOT NULL,
            redelivered INTEGER NOT NULL    -- as above; 3: marked, so the delivery before is counted
        )""",
        """CREATE TABLE IF NOT EXISTS kw_parked (
            due         REAL NOT NULL,      -- unix time
            id          INTEGER NOT NULL,
            queue       TEXT NOT NULL,
            priority    INTEGER NOT NULL,
            attempts    INTEGER NOT NULL,
            returns     INTEGER NOT NULL,
            redelivered INTEGER NOT NULL,
            PRIMARY KEY (due, id)
        ) WITHOUT ROWID""",
        """CREATE TABLE IF NOT EXISTS kw_dead (
            number   INTEGER PRIMARY KEY,   -- order of dying
            id       INTEGER NOT NULL UNIQUE,
            queue    TEXT NOT NULL,
            priority INTEGER NOT NULL,
            attempts INTEGER NOT NULL,
            reason   TEXT NOT NULL,
            died_at  REAL NOT NULL          -- unix time
        )""",
        "CREATE INDEX IF NOT EXISTS kw_dead_of_queue ON kw_dead (queue, number)",
        # AUTOINCREMENT: the id of a holder that is gone must never become another's.
        """CREATE TABLE IF NOT EXISTS kw_holder (
            id       INTEGER PRIMARY KEY AUTOINCREMENT,
            name     TEXT NOT NULL UNIQUE,
            boot     TEXT NOT NULL,         -- whose clock `deadline` is read from, see `leases`
            deadline REAL NOT NULL
        )""",
        """CREATE TABLE IF NOT EXISTS kw_binding (
            exchange    TEXT NOT NULL,
            routing_key TEXT NOT NULL,
            queue       TEXT NOT NULL,
            PRIMARY KEY (exchange, routing_key, queue)
        ) WITHOUT ROWID""",
        # AUTOINCREMENT: listeners remember the last number they saw, and old rows are deleted.
        """CREATE TABLE IF NOT EXISTS kw_broadcast (
            number  INTEGER PRIMARY KEY AUTOINCREMENT,
            channel TEXT NOT NULL,
            body    BLOB NOT NULL,
            sent_at REAL NOT NULL           -- unix time
        )""",
    ),
)

ADD_MESSAGE = "INSERT INTO kw_message (raw, payload) VALUES (?, ?)"
ADD_WAITING = """
    INSERT INTO kw_waiting (queue, priority, id, attempts, returns, redelivered)
    VALUES (?, ?, last_insert_rowid(), 0, 0, 0)"""


def append(
    connection: sqlite3.Connection, queue: str, raw: bytes, priority: int = 0, payload: bytes | None = None
) -> None:
    """Add one message to the end of a queue. Inside a transaction."""
    connection.execute(ADD_MESSAGE, (raw, payload))
    connection.execute(ADD_WAITING, (queue, priority))
