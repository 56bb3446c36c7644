"""The logical clock (Lamport) of a worker: orders events and control messages of several nodes.

Any thread: an increment lost between two threads makes two equal stamps, which the order allows.
"""

from __future__ import annotations

from typing import Any

LARGEST = 2**53
"""Beyond it JSON readers lose digits; a peer that claims more is not believed."""
LARGEST_JUMP = 2**40
"""How far a peer's clock may be ahead of ours: above what any worker counts in years."""


class Clock:
    """Counts; `adjust` keeps it ahead of what peers say."""

    __slots__ = ("value",)

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def forward(self) -> int:
        """One step on; the new value."""
        self.value += 1
        return self.value

    def adjust(self, other: Any) -> int:
        """Heard from a peer: go beyond its clock. Untrusted input; what is no sensible number is passed over."""
        if type(other) is int and self.value < other < min(LARGEST, self.value + LARGEST_JUMP):
            self.value = other
        return self.forward()
