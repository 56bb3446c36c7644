"""Until when this worker holds what it has reserved, on a clock that goes on while the machine is suspended.

Imports nothing of the kernel. The settle thread renews; the loop hands the end of the lease on to the executors, on
their boards.
"""

from __future__ import annotations

import time

NEVER = float("inf")

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)  # Linux


def clock() -> float:
    """Seconds since some moment, with the time the machine was suspended where the system tells it."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class Lease:
    """The lease of one worker. Written by one thread; read by any.

    :param seconds: how long it lasts without being renewed; 0 = the broker knows no leases, so it never ends.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.held_until = NEVER
        """Until when nobody else gets what is held here, on `clock`."""

    @property
    def is_over(self) -> bool:
        """Whether others may have what is held here."""
        return clock() > self.held_until

    def renewed(self, begun: float) -> None:
        """The broker renewed it.

        :param begun: when it was asked to, on `clock`: its own time is between that and now.
        """
        if self.seconds:
            self.held_until = begun + self.seconds
