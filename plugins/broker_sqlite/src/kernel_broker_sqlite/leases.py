"""Who is alive, and what happens to the messages of who is not. SQL on a connection the caller gives.

A lease ends by the clock that counts since the machine was started: all processes of one machine read the
same one, and neither setting the time nor suspending the machine moves it. A lease from before the last
start is over. Where the system does not tell one start from another, the wall clock must do.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

ENTER = """
    INSERT INTO kw_holder (name, boot, deadline) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET boot = excluded.boot, deadline = excluded.deadline"""
FIND = "SELECT id, boot, deadline FROM kw_holder WHERE name = ?"
ANY_DEAD = "SELECT 1 FROM kw_holder WHERE (boot <> ? OR deadline < ?) AND name <> ?"
BURY_HOLDERS = f"DELETE FROM kw_holder WHERE id IN ({ANY_DEAD.replace('1', 'id', 1)})"
RETURN_ORPHANS = """
    INSERT INTO kw_waiting (queue, priority, id, attempts, returns, redelivered)
    SELECT queue, priority, id, attempts, returns, 2 FROM kw_held WHERE holder NOT IN (SELECT id FROM kw_holder)"""
RELEASE_ORPHANS = "DELETE FROM kw_held WHERE holder NOT IN (SELECT id FROM kw_holder)"
GIVE_BACK = """
    INSERT INTO kw_waiting (queue, priority, id, attempts, returns, redelivered)
    SELECT queue, priority, id, attempts, returns, CASE redelivered WHEN 2 THEN 2 ELSE 1 END
    FROM kw_held WHERE holder = ?"""
RELEASE = "DELETE FROM kw_held WHERE holder = ?"
LEAVE = "DELETE FROM kw_holder WHERE id = ?"


def _start_of_this_machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of one holder.

    :param name: unique name of the worker's incarnation.
    :param seconds: how long it lasts without being renewed.
    :param boot: identity of the machine's last start; "" = unknown, so the wall clock is used.
    """

    name: str
    seconds: float
    boot: str

    @classmethod
    def of(cls, name: str, seconds: float) -> Lease:
        """The lease of a holder on this machine."""
        return cls(name, seconds, _start_of_this_machine())

    def clock(self) -> float:
        """Now, on the clock that deadlines are written in."""
        return time.monotonic() if self.boot else time.time()

    def renew(self, connection: sqlite3.Connection) -> None:
        """Let the lease last from now. A lease that others found ended begins anew, under another id."""
        connection.execute(ENTER, (self.name, self.boot, self.clock() + self.seconds))

    def holder(self, connection: sqlite3.Connection) -> int:
        """The holder's id, under a lease that is not over: what is reserved next must have one."""
        row = connection.execute(FIND, (self.name,)).fetchone()
        if row is None or row[1] != self.boot or row[2] < self.clock():
            self.renew(connection)
            row = connection.execute(FIND, (self.name,)).fetchone()
        return int(row[0])

    def others_have_died(self, connection: sqlite3.Connection) -> bool:
        """Whether some lease but this one is over. Only reads."""
        return connection.execute(ANY_DEAD, (self.boot, self.clock(), self.name)).fetchone() is not None

    def sweep(self, connection: sqlite3.Connection) -> None:
        """Bring back the messages of the dead, as recovered ones, and forget the dead.

        Never ends this lease, though it may be over: its messages are in this very process.
        """
        connection.execute(BURY_HOLDERS, (self.boot, self.clock(), self.name))
        connection.execute(RETURN_ORPHANS)
        connection.execute(RELEASE_ORPHANS)

    def leave(self, connection: sqlite3.Connection) -> None:
        """Give back what is held, without counting, and end the lease."""
        row = connection.execute(FIND, (self.name,)).fetchone()
        if row is not None:
            for statement in (GIVE_BACK, RELEASE, LEAVE):
                connection.execute(statement, (row[0],))
