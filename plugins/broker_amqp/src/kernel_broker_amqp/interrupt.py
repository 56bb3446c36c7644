"""Wake a thread that waits on a socket, from any other thread."""

from __future__ import annotations

import os
import threading


class Interrupt:
    """A flag that is also readable as a descriptor while it is set. Holds a pipe from `open` to `close`, both
    idempotent; works as a plain flag without it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._ends: tuple[int, int] | None = None

    @property
    def descriptor(self) -> int | None:
        """Readable while the flag is set; None while not open."""
        return self._ends[0] if self._ends is not None else None

    def open(self) -> None:
        with self._lock:
            if self._ends is None:
                self._ends = os.pipe()
                if self._is_set:
                    os.write(self._ends[1], b".")

    def close(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, None
            for end in ends or ():
                os.close(end)

    def set(self) -> None:
        """Any thread; never blocks: the pipe holds one byte at most."""
        with self._lock:
            if not self._is_set and self._ends is not None:
                os.write(self._ends[1], b".")
            self._is_set = True

    def take(self) -> bool:
        """Whether it was set; it is not afterwards."""
        if not self._is_set:  # the common case costs no lock
            return False
        with self._lock:
            was_set, self._is_set = self._is_set, False
            if was_set and self._ends is not None:
                os.read(self._ends[0], 1)
            return was_set
