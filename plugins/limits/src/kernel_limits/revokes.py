"""What is revoked: task ids and stamped headers, bounded and with an expiry. Pure; loop thread.

After the expiry a task of that id may run again, but for one that was not due yet when it was revoked: it lay in the
broker all the time, and nobody could tell how long the revoke had to hold. So entries are kept after their expiry. The
oldest are forgotten first when there are too many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

_Key = TypeVar("_Key", str, tuple[str, str])

MAX_STAMPS = 10_000
"""Values of stamped headers that are kept, of all headers together."""
KEPT_S = 366 * 86_400.0
"""For so long after its expiry a revoke goes on holding for tasks that were due later."""


class Revokes:
    """Revoked ids with the unix time until which they are, and revoked stamps.

    :param most: ids kept at most.
    :param expires_s: seconds a revoke holds.
    """

    def __init__(self, most: int, expires_s: float) -> None:
        self.most = most
        self.expires_s = expires_s
        self.ids: OrderedDict[str, float] = OrderedDict()
        """In the order they were revoked, expired ones included. Read it to look one id up: that is all the hot path
        does."""
        self.stamps: OrderedDict[tuple[str, str], float] = OrderedDict()
        """Header and value, as text, to the unix time until which tasks stamped so are revoked."""
        self.forgotten = 0
        """Ids given up for newer ones."""

    def add(self, ids: Iterable[str], now: float, until: float | None = None) -> None:
        """Revoke ids from now on.

        :param until: unix time, where it was said before; default: `expires_s` from now.
        """
        until = until if until is not None else now + self.expires_s
        known = self.ids
        for task_id in ids:
            known.pop(task_id, None)  # revoked again: it is the newest
            known[task_id] = until
        self.purge(now)

    def add_stamps(self, headers: Mapping[str, Iterable[Any]], now: float, until: float | None = None) -> None:
        """Revoke all tasks stamped with one of these values under one of these headers."""
        until = until if until is not None else now + self.expires_s
        for header, values in headers.items():
            for value in values:
                self.stamps.pop((header, str(value)), None)
                self.stamps[header, str(value)] = until
        self.purge(now)

    def purge(self, now: float) -> None:
        """Forget what no task can be due for any more, and the oldest beyond the limit."""
        self.forgotten += _purge(self.ids, self.most, now)
        _purge(self.stamps, MAX_STAMPS, now)

    def is_revoked(self, task_id: str, headers: Mapping[str, Any], now: float, due: float = 0.0) -> bool:
        """Whether a task shall not run, by its id or its stamps.

        :param due: unix time of its ETA; 0 = it has none.
        """
        until = self.ids.get(task_id)
        if until is not None and self._holds(until, now, due):
            return True
        return bool(self.stamps) and any(
            (until := self.stamps.get(stamp)) is not None and self._holds(until, now, due)
            for stamp in stamps_of(headers)
        )

    def _holds(self, until: float, now: float, due: float) -> bool:
        return until > now or due >= until - self.expires_s

    def current(self, now: float) -> list[str]:
        """The ids that have not expired, oldest first."""
        self.purge(now)
        return [task_id for task_id, until in self.ids.items() if until > now]


def _purge(known: OrderedDict[_Key, float], most: int, now: float) -> int:
    """How many were given up for newer ones."""
    forgotten = 0
    while known:
        oldest = next(iter(known))
        if known[oldest] > now - KEPT_S:
            if len(known) <= most:
                break
            forgotten += 1
        del known[oldest]
    return forgotten


def stamps_of(headers: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Header and value, as text, of each stamp of a message. Untrusted input: what is no stamp is passed over."""
    names, stamps = headers.get("stamped_headers"), headers.get("stamps")
    if not isinstance(names, (list, tuple)) or not isinstance(stamps, Mapping):
        return
    for name in names:
        if isinstance(name, str) and (value := stamps.get(name)) is not None:
            for each in value if isinstance(value, (list, tuple)) else (value,):
                yield name, str(each)
