"""Where messages lie: the folders of the broker, and how files move between them. Imports no kernel.

    <root>/queues/<queue>/waiting/<message>
    <root>/queues/<queue>/parked/<due, µs>~<message>
    <root>/queues/<queue>/dead/<died, µs>~<message>     and .reason beside it
    <root>/held/<holder>/<queue>~<message>
    <root>/held/<holder>/lease        its text: seconds; its modification time: the last renewal

A message is one file in exactly one of these folders; every step is one rename, which is atomic. What is known of it is
its name, see `Name`.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

LEASE = "lease"
_serial = itertools.count()


class Name(NamedTuple):
    """A message's file name: its fields, with dots between them.

    `number` sorts in the order of publishing; `deliveries` makes the name of each delivery another one, so that a late
    settlement of an earlier delivery finds nothing. The rest is what `kernel_worker.Delivery` says.
    """

    number: str
    attempts: int = 0
    returns: int = 0
    recovered: int = 0
    deliveries: int = 0

    def __str__(self) -> str:
        return ".".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Name:
        """Read the name of a file in `waiting`."""
        number, *rest = text.split(".")
        return cls(number, *map(int, rest))


class Folder:
    """The storage behind one URL."""

    def __init__(self, url: str) -> None:
        self.root = Path(url.partition("://")[2].removeprefix("/"))

    def queue(self, queue: str, state: str) -> Path:
        """Folder of the messages of a queue that are waiting, parked or dead."""
        return self.root / "queues" / quoted(queue) / state

    def holder(self, holder: str) -> Path:
        """Folder of what a holder has reserved."""
        return self.root / "held" / quoted(holder)

    def make(self, queue: str) -> None:
        """Make the folders of a queue."""
        for state in ("waiting", "parked", "dead"):
            self.queue(queue, state).mkdir(parents=True, exist_ok=True)
        (self.root / "held").mkdir(exist_ok=True)

    def add(self, queue: str, raw: bytes, due: float = 0.0) -> None:
        """Append a message, on disk before this returns; parked until `due` (unix time) if that is to come."""
        self.make(queue)
        name = new_name()
        fresh = self.root / f"new-{name}"
        with fresh.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        if due > time.time():
            fresh.rename(self.queue(queue, "parked") / stamped(due, name))
        else:
            fresh.rename(self.queue(queue, "waiting") / str(name))

    def unpark(self, queue: str) -> None:
        """Move what is due to the waiting messages."""
        parked = self.queue(queue, "parked")
        for text in listed(parked):
            due, _, name = text.partition("~")
            if int(due) > time.time() * 1e6:
                return
            move(parked / text, self.queue(queue, "waiting") / name)

    def hold(self, holder: Path, lease_s: float) -> None:
        """Make or renew a holder's lease; after the folder was lost, in a new one."""
        try:
            os.utime(holder / LEASE)
        except FileNotFoundError:
            holder.mkdir(parents=True, exist_ok=True)
            fresh = holder / f"{LEASE}.new"  # a lease is whole or not there: a kill may come at any moment
            fresh.write_text(str(lease_s))
            fresh.rename(holder / LEASE)

    def reclaim(self) -> None:
        """Give back what holders hold that stopped renewing; they may have been running it."""
        for holder in sorted(self.root.glob("held/*/")):
            try:
                lease = holder / LEASE
                expired = lease.stat().st_mtime + float(lease.read_text()) < time.time()
            except FileNotFoundError:
                continue  # gone, or being made: nothing is held before there is a lease
            # Renamed first: a holder that wakes up now finds nothing, and reserves into a new folder.
            taken = holder.with_name(f"lost-{uuid.uuid4().hex}")
            if expired and move(holder, taken):
                self.give_back(taken, died=True)

    def give_back(self, holder: Path, died: bool = False) -> None:
        """Put everything a holder has back to the front of its queue, and forget the holder."""
        if not holder.is_dir():
            return
        for text in listed(holder):
            queue, separator, rest = text.partition("~")
            if separator:
                name = Name.parse(rest)
                self.requeue(holder / text, unquoted(queue), name._replace(recovered=1) if died else name)
        (holder / LEASE).unlink(missing_ok=True)
        try:
            holder.rmdir()
        except OSError:
            pass  # gone, or in use again

    def requeue(self, held: Path, queue: str, name: Name) -> None:
        """Back to the place it had."""
        move(held, self.queue(queue, "waiting") / str(name))

    def held(self, queue: str) -> Iterator[Path]:
        """Everything of a queue that somebody has reserved."""
        return self.root.glob(f"held/*/{quoted(queue).replace('[', '[[]')}~*")


def new_name() -> Name:
    """The name of a message that comes after all others."""
    return Name(f"{time.time_ns():020}-{next(_serial):08}-{uuid.uuid4().hex[:8]}")


def quoted(text: str) -> str:
    """A queue's or holder's name as the name of a folder: no separators, no dots."""
    return "q" + quote(text, safe="").replace("~", "%7E").replace(".", "%2E")


def unquoted(text: str) -> str:
    """The reverse of `quoted`."""
    return unquote(text[1:])


def stamped(when: float, name: Name) -> str:
    """A name that sorts by a time."""
    return f"{int(when * 1e6):020}~{name}"


def listed(folder: Path) -> list[str]:
    """File names in order; nothing if there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def move(source: Path, target: Path) -> bool:
    """Rename; False when somebody else was faster."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True
