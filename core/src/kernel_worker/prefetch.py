"""How many deliveries are worth holding: enough for the measured rate, and nothing behind long tasks.

Runs on the loop thread. Knows numbers only: the dispatcher counts, and asks at each turn's end.
"""

from __future__ import annotations

import time

BATCH_S = 0.1
"""Work held ready: about what is finished in this time at the measured rate."""
FEW = ((100, 0.25), (200, 0.5))
"""(requests, seconds): the same for no more than so many, as beside tasks of some milliseconds a round trip to the broker costs
as much as several of them. The second while probably so many more wait in the queues that other workers do not go short."""
MAX_HELD = 4000
SURPLUS_S = 0.5
"""Work that waits here longer than this, by the measured rate, is given back for other workers."""
RATE_SAMPLE = 200
"""Requests after which the rate is measured before the next tick, so that a burst ramps up at once."""


class Prefetch:
    """The measured rate of one worker, and what follows from it. `completed` is always the total since the start.

    :param multiplier: upper bound of what is held per slot; 0 or None = none.
    """

    def __init__(self, multiplier: int | None = None) -> None:
        self.multiplier = multiplier
        self.rate = 0.0
        """Requests per second."""
        self.slow = False
        """Nothing is held but what runs."""
        self.more = False
        """The last fetch that brought any brought as many as were asked for, and no slot has been idle since."""
        self._rate_at = time.monotonic()
        self._rate_from = 0
        self._pace_at = 0.0
        self._pace_from = 0

    def begin(self, completed: int) -> None:
        """Work comes after an idle time, which says nothing about how long tasks take."""
        self._rate_at, self._rate_from = time.monotonic(), completed
        self._pace_at, self._pace_from, self.slow = self._rate_at, completed, False

    def limit(self, slots: int, completed: int) -> int:
        """How many deliveries to hold now."""
        if completed - self._rate_from >= RATE_SAMPLE:
            self._measure(completed)
        if self.slow and completed - self._pace_from >= 2 * slots:
            self.slow = False
        limit = slots
        if slots and not self.slow:
            few, few_s = FEW[self.more]
            spare = max(min(slots, 4), slots // 4) + int(max(self.rate * BATCH_S, min(few, self.rate * few_s)))
            limit += min(MAX_HELD, spare)
        return min(limit, slots * self.multiplier) if self.multiplier else limit

    def tick(self, slots: int, completed: int, is_idle: bool) -> int:
        """Let the rate fall, every tenth of a second while there is work.

        :param is_idle: a slot has nothing to do.
        :return: how many requests may go on waiting for a slot; those beyond belong to other workers.
        """
        self.more = self.more and not is_idle
        before = self.rate
        rate = self._measure(completed)
        self.rate = rate if rate > before else 0.5 * before + 0.5 * rate
        self._notice_pace(slots, completed, is_idle)
        return 0 if self.slow else int(self.rate * SURPLUS_S) + 4 * slots

    def _measure(self, completed: int) -> float:
        """Requests per second since the last measurement; the rate kept only rises here."""
        now = time.monotonic()
        rate = (completed - self._rate_from) / max(1e-3, now - self._rate_at)
        self._rate_at, self._rate_from = now, completed
        self.rate = max(self.rate, rate)
        return rate

    def _notice_pace(self, slots: int, completed: int, is_idle: bool) -> None:
        """Slow: all slots were busy and did not end two tasks each in half a second. Then nothing is held but what
        runs: whatever waits behind such tasks is better off with another worker."""
        now = time.monotonic()
        is_brisk = is_idle or completed - self._pace_from >= 2 * slots
        if is_brisk or now - self._pace_at > SURPLUS_S:
            self.slow = not is_brisk
            self._pace_at, self._pace_from = now, completed
