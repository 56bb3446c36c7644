"""Names of message files, and the state of a message that stands in them. Imports nothing of the kernel.

kombu's name is `<milliseconds>_<uuid>.<queue>.msg`; peers read only what comes after the first dot and take the
files in the order of their names. So what we have to remember of a message goes before that dot, and its bytes are
never touched: `~`, a letter, the number of attempts, and after `u` how often its task was unknown: `~r2`, `~n0u1`.

    n       not delivered before, or parked since; the same as nothing at all
    r       delivered before, and given back
    x       its holder died, or lost its lease, with it
    m       reserved and marked: the delivery before it is in the number already
"""

from __future__ import annotations

import itertools
import os
import re
import time
from typing import NamedTuple

SUFFIX = ".msg"
FRESH, RETURNED, RECOVERED, MARKED = "n", "r", "x", "m"
_STATE = re.compile(r"(.*)~([nrxm])(\d{1,9})(?:u(\d{1,9}))?")
_serial = itertools.count()


class Name(NamedTuple):
    """A message file's name, taken apart."""

    stem: str
    queue: str
    state: str = FRESH
    attempts: int = 0
    returns: int = 0

    def __str__(self) -> str:
        is_plain = self.state == FRESH and not self.attempts and not self.returns
        unknown = f"u{self.returns}" if self.returns else ""
        state = "" if is_plain else f"~{self.state}{self.attempts}{unknown}"
        return f"{self.stem}{state}.{self.queue}{SUFFIX}"

    def returned(self, *, count: bool = False) -> Name:
        """When its holder gives it back. A mark, or `count`, accounts for its having been recovered."""
        if count or self.state == MARKED:
            return self._replace(state=RETURNED, attempts=self.attempts + count)
        return self if self.state == RECOVERED else self._replace(state=RETURNED)

    def delayed(self, *, count: bool = False) -> Name:
        """When its holder parks it; `count`: since nobody there knew its task."""
        return self._replace(
            state=RETURNED if self.state == MARKED else self.state, returns=self.returns + (1 if count else 0)
        )

    def marked(self) -> Name:
        """When the delivery before it is counted in place; once."""
        return self if self.state == MARKED else self._replace(state=MARKED, attempts=self.attempts + 1)

    def recovered(self) -> Name:
        """When it is taken from a holder that is gone."""
        return self._replace(state=RECOVERED)


def parse(filename: str) -> Name | None:
    """The parts of a name, or None if it is no message's."""
    stem, _, tail = filename.partition(".")
    if not tail.endswith(SUFFIX) or not stem:
        return None
    queue = tail.removesuffix(SUFFIX)
    found = _STATE.fullmatch(stem)
    return Name(found[1], queue, found[2], int(found[3]), int(found[4] or 0)) if found else Name(stem, queue)


def new_name(queue: str) -> str:
    """A name that comes after all that were made before it on this machine.

    kombu's clock is the milliseconds since the machine was started, and its uuid is random. Ours begins with what
    is left of the nanosecond, and a serial number: else messages of the same millisecond would change places.
    """
    milliseconds, rest = divmod(time.monotonic_ns(), 1_000_000)
    tail = os.urandom(8).hex()
    return (
        f"{milliseconds}_{rest:08x}-{next(_serial) & 0xFFFF:04x}-4{tail[:3]}-8{tail[3:6]}-{tail[4:16]}.{queue}{SUFFIX}"
    )


def order(filename: str) -> tuple[int, str]:
    """Sort key: by age. Plain text order, which kombu uses, breaks whenever the clock gets one more digit."""
    clock, _, rest = filename.partition("_")
    return (int(clock) if clock.isascii() and clock.isdigit() and len(clock) < 20 else 0, rest)


def is_queue_name(queue: str) -> bool:
    """Whether a queue can be part of a file name."""
    return bool(queue) and "/" not in queue and "\0" not in queue and len(queue.encode()) <= 150
