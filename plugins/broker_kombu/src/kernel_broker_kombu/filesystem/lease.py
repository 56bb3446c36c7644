"""Whose a reserved message is: one folder per holder, with a file whose time its holder renews.

Nobody compares clocks. Who looks remembers when, by its own clock, it last saw a holder's file change; a file that
has not changed for as long as its lease belongs to nobody alive. So the machines that share the folder need not agree
on the time, and setting a clock ends no lease. The price: who has just begun to look waits a whole lease.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from urllib.parse import quote

from .folders import Folders, move, names_in
from .names import Name, parse

LEASE_FILE = ".lease"


class Lease:
    """The lease of one holder, and its eye on the others. `observe` on the fetch thread; the rest on any.

    :param seconds: how long it lasts without being renewed.
    """

    def __init__(self, folders: Folders, holder: str, seconds: float) -> None:
        self.folder = os.path.join(folders.held, quote(holder, safe="@"))
        self._folders = folders
        self._file = os.path.join(self.folder, LEASE_FILE)
        self._seconds = seconds
        self._seen: dict[str, tuple[int, float, float]] = {}
        """Holder's folder to: time of its file, when that was first seen, length of its lease."""

    def renew(self) -> None:
        """Let the lease last from now; take it out (again) if there is none.

        :raises OSError: the folder cannot be used.
        """
        try:
            os.utime(self._file)
        except FileNotFoundError:
            os.makedirs(self.folder, exist_ok=True)
            draft = os.path.join(self.folder, f"{LEASE_FILE}{secrets.token_hex(4)}")
            Path(draft).write_text(repr(self._seconds))
            os.rename(draft, self._file)  # never seen without its content

    def observe(self) -> int:
        """Bring back the messages of holders that are gone; how many."""
        now, others = time.monotonic(), {}
        for name in names_in(self._folders.held):
            folder = os.path.join(self._folders.held, name)
            if folder == self.folder:
                continue
            changed = _time_of(os.path.join(folder, LEASE_FILE))
            known = self._seen.get(name)
            if known is None or known[0] != changed:
                known = (changed, now, _length_of(os.path.join(folder, LEASE_FILE), self._seconds))
            others[name] = known
        self._seen = others
        gone = [name for name, (_, since, seconds) in others.items() if now - since > seconds]
        return sum(self._take_over(name) for name in gone)

    def _take_over(self, name: str) -> int:
        """Only one of several can rename the folder; from then on its holder owns nothing of it. Who dies half-way
        leaves a folder like any other, whose lease is over."""
        seized = f"{name.partition('~')[0]}~{secrets.token_hex(4)}"
        try:
            os.rename(os.path.join(self._folders.held, name), os.path.join(self._folders.held, seized))
        except FileNotFoundError:
            return 0
        self._seen.pop(name, None)
        return give_back(self._folders, os.path.join(self._folders.held, seized), recovered=True)

    def leave(self) -> None:
        """Give back what is held, and end the lease.

        :raises OSError: the folder cannot be used.
        """
        give_back(self._folders, self.folder, recovered=False)


def give_back(folders: Folders, folder: str, *, recovered: bool) -> int:
    """Move a holder's messages to where they wait, and remove its folder; how many there were."""
    count = 0
    for held in names_in(folder):
        name = name_of(held)
        if name is not None:
            back = name.recovered() if recovered else name.returned()
            count += move(os.path.join(folder, held), os.path.join(folders.incoming, str(back)))
    for path in (os.path.join(folder, LEASE_FILE), *(os.path.join(folder, draft) for draft in names_in(folder))):
        if os.path.basename(path).startswith(LEASE_FILE):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # another one gives back the same
    try:
        os.rmdir(folder)
    except OSError:
        pass  # gone, or a message was put into it in this moment: it is found like any holder's folder
    return count


def name_of(held: str) -> Name | None:
    """The message's own name in that of a held file, `<n>~<name>`; None if it is none."""
    return parse(held.partition("~")[2])


def _time_of(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _length_of(path: str, default: float) -> float:
    try:
        return float(Path(path).read_text())
    except (OSError, ValueError):  # not there yet, or not any more
        return default
