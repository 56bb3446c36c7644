"""Show how far a long run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

WIDTH = 40
STEP_PERCENT = 20
REDRAW_S = 0.05
"""A terminal need not be told more often."""


class Progress:
    """A context manager; `advance()` once per finished item."""

    def __init__(self, label: str, total: int, stream: TextIO = sys.stderr) -> None:
        self._label = label
        self._total = max(1, total)
        self._stream = stream
        self._done = 0
        self._shown = -1
        self._drawn_at = 0.0
        self._is_terminal = stream.isatty()

    def __enter__(self) -> Progress:
        return self

    def advance(self) -> None:
        """One more item is done."""
        self._done += 1
        percent = 100 * self._done // self._total
        if self._is_terminal:
            now = time.monotonic()
            if self._done == self._total or now - self._drawn_at >= REDRAW_S:
                self._drawn_at = now
                filled = WIDTH * self._done // self._total
                bar = "█" * filled + "·" * (WIDTH - filled)
                self._stream.write(f"\r{self._label} {bar} {self._done:,}/{self._total:,} {percent:3d} %")
                self._stream.flush()
        elif percent // STEP_PERCENT > self._shown // STEP_PERCENT:
            self._stream.write(f"{self._label} {percent:3d} %\n")
            self._stream.flush()
        self._shown = percent

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal and self._done:
            self._stream.write("\n")
            self._stream.flush()
