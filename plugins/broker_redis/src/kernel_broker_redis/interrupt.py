"""Wake a thread that waits on a socket, from any other thread."""

from __future__ import annotations

import os
import threading


class Interrupt:
    """A flag with a descriptor to wait on. Set by any thread, taken by the one that waits.

    `descriptor` is readable while the flag is set. Holds a pipe from `open` to `close`; both are idempotent, and
    the flag works without the pipe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._pipe: tuple[int, int] | None = None

    @property
    def descriptor(self) -> int:
        if self._pipe is None:
            raise ValueError("not open")
        return self._pipe[0]

    def open(self) -> None:
        with self._lock:
            if self._pipe is None:
                self._pipe = os.pipe()
                if self._is_set:
                    os.write(self._pipe[1], b"!")

    def close(self) -> None:
        with self._lock:
            pipe, self._pipe = self._pipe, None
            for descriptor in pipe or ():
                os.close(descriptor)

    def set(self) -> None:
        """Set the flag. Any thread; never blocks, since at most one byte is outstanding."""
        with self._lock:
            if not self._is_set and self._pipe is not None:
                os.write(self._pipe[1], b"!")
            self._is_set = True

    def take(self) -> bool:
        """Whether the flag was set; it is not afterwards."""
        if not self._is_set:  # the common case, without the lock
            return False
        with self._lock:
            if self._pipe is not None:
                os.read(self._pipe[0], 1)
            self._is_set = False
            return True
