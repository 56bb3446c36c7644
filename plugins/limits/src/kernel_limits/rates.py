"""Rate limits: when may the next run of a task start? Pure arithmetic on unix times given by the caller; loop thread.

A limited message gets its own time and is parked in the broker until then, so that it blocks nobody and is not held
in memory. What comes back when its time has come is let through. Times are given out only for the near future: what
lies behind is parked for a while without one, so that a changed limit is felt soon and a long line costs little.
"""

from __future__ import annotations

import random
import re
from collections import OrderedDict
from collections.abc import Callable

NEAR_S = 5.0
"""Times are given out this far ahead, longer for a long line: then less often looked at, see `LOOKS_PER_S`. Within this
time a changed limit is felt by all that wait, if they are no more than 500."""
LOOKS_PER_S = 100
"""How often a second messages without a time are looked at again, about: each costs a fetch and a delay."""
KNOWN = 10_000
"""Given times that are remembered. What comes back and is not remembered waits its turn among the new ones."""
EARLY_S = 0.01
"""A message that comes so much before its time is let through: clocks are not that exact."""
AHEAD_MOST_S = 60.0
LATE_S = 0.1
"""New messages leave room for those whose time came less than this ago: they are on their way."""
CATCH_UP_S = 0.5
"""So much of the rate that was not used, while messages wait, is made up for later."""

_RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:/\s*([a-zA-Z]+))?\s*")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_rate(value: object) -> float:
    """Runs per second that a limit such as "10/s", "200/m", "5/h" or a number allows; 0.0 = no limit.

    :raises ValueError: it is none of these; the text says what is.
    """
    if value is None or value == "":
        return 0.0
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        match = _RATE.fullmatch(str(value))
        if match is not None:
            amount, unit = match.groups()
            seconds = _UNITS.get((unit or "s").lower())
            if seconds is not None:
                return float(amount) / seconds
    raise ValueError(f"{value!r:.80} is no rate such as 10/s, 200/m or 5/h")


class RateLimit:
    """The runs of one task in this worker.

    :param rate: runs per second, above 0.
    :param jitter: gives a number from 0 to 1; for tests.
    """

    def __init__(self, rate: float, *, jitter: Callable[[], float] = random.random) -> None:
        self.interval_s = 1.0 / rate
        self._jitter = jitter
        self._free_at = 0.0
        """When the next run may start."""
        self._tail = 0.0
        """The end of the line: the next time to give out."""
        self._given: OrderedDict[str, float] = OrderedDict()
        """Times given out, by message, in their order."""
        self._ahead_s = 0.0
        """How far the broker's clock is ahead of ours, as far as was noticed: so much later are messages asked back."""
        self._early: dict[str, float] = {}
        """How much later than due those were asked back that came too early nevertheless."""
        self._far = 0
        self._far_before = 0
        self._far_until = 0.0

    def admit(self, message_id: str, now: float) -> float:
        """Ask for a run of one message.

        :param now: unix time.
        :return: 0.0: start it now; else the unix time at which to ask again.
        """
        self._forget_late(now)
        slot = self._given.get(message_id)
        if slot is not None:
            if slot > now + EARLY_S:
                return self._later(message_id, slot, now)
            del self._given[message_id]
            self._early.pop(message_id, None)
            is_free = self._free_at <= now + EARLY_S
        else:
            is_free = self._free_at + self._expected(now) * self.interval_s <= now
        if not is_free:
            return self._line_up(message_id, now)
        # Nothing is saved up while nobody waits; what was missed while somebody did is made up for.
        earliest = now - CATCH_UP_S if self._given or slot is not None else now
        self._free_at = max(self._free_at, earliest) + self.interval_s
        return 0.0

    def _expected(self, now: float) -> int:
        """How many messages should be here now and are not yet. Counted only when a run is free."""
        if self._free_at > now:
            return 0
        count = 0
        for slot in self._given.values():
            if slot > now:
                break
            count += 1
        return count

    def _line_up(self, message_id: str, now: float) -> float:
        slot = max(self._tail, self._free_at, now)
        horizon_s = max(NEAR_S, max(self._far, self._far_before) / LOOKS_PER_S)
        if slot - now <= horizon_s:
            self._tail = slot + self.interval_s
            if not self._given:
                self._ahead_s = 0.0
            if len(self._given) < KNOWN:
                self._given[message_id] = slot
            return slot + self._ahead_s
        if now >= self._far_until:
            self._far_until = now + horizon_s
            self._far, self._far_before = 0, self._far
        self._far += 1
        return now + horizon_s * (0.2 + 0.8 * self._jitter())

    def _later(self, message_id: str, slot: float, now: float) -> float:
        """The broker's clock is ahead: by this much, or by more if the message was due for it at once. Said without
        that, it would give the message back again and again until its time."""
        lead_s = slot - now
        self._ahead_s = min(AHEAD_MOST_S, max(self._ahead_s, lead_s))
        asked_s = self._early.get(message_id, 0.0)
        self._early[message_id] = again_s = min(AHEAD_MOST_S, max(self._ahead_s, 2 * asked_s))
        return slot + again_s

    def _forget_late(self, now: float) -> None:
        """Times whose messages did not come: another worker has them, or they come later and wait anew."""
        given = self._given
        while given:
            message_id = next(iter(given))
            if given[message_id] >= now - LATE_S:
                return
            del given[message_id]
            self._early.pop(message_id, None)
