"""Wait until another process may have written to the file. SQLite tells nobody that something has changed.

On Linux the kernel tells: every commit writes to the log beside the file, and inotify reports that within
some 50 µs, at no cost while nothing happens. It is a hint, not the truth: looking is left to the caller, and
goes on ten times a second even when no hint comes. Elsewhere, or where inotify is used up, waiting is
looking, at intervals that grow with the time in which nothing happened.
"""

from __future__ import annotations

import math
import os
import select
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_PAUSE_S = 0.1
"""Between two looks when hints are expected."""
LONGEST_BLIND_S = 0.015
"""Between two looks without hints: what is published then waits for half of it on average."""
COMMIT_S = 0.0001
"""From the first write of a small transaction until it can be seen."""
SHORTEST_PAUSE_S = 0.001
RETRY_S = 1.0
"""After a failure to watch."""

# From <sys/inotify.h>; an event is: watch, mask, cookie, length of the name that follows.
IN_MODIFY, IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF, IN_IGNORED = 0x2, 0x4, 0x400, 0x800, 0x8000
FILE_GONE = IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED
EVENT = struct.Struct("=iIII")


class Watch:
    """Waits for changes of one SQLite file. One thread waits; any thread may call `wake`.

    :param path: of the database, which has been opened before, so that its log exists.
    :param can_wake: whether `wake` is going to be called; it takes two descriptors.
    :param blind: do without hints.
    """

    def __init__(self, path: str, *, can_wake: bool = False, blind: bool = False) -> None:
        self._log = os.fsencode(path) + b"-wal"
        self._hints: int | None = None
        self._next_try = math.inf if blind else 0.0
        self._hinted_at = time.monotonic()
        self._closing = threading.Lock()
        self._pipe: tuple[int, int] | None = os.pipe() if can_wake else None
        for descriptor in self._pipe or ():
            os.set_blocking(descriptor, False)

    def wait(self, idle_s: float, longest_s: float) -> None:
        """Wait for a reason to look: a hint, `wake`, or the time for a look without either.

        :param idle_s: how long the caller has seen nothing that concerns it.
        :param longest_s: never wait longer.
        """
        if self._hints is None and time.monotonic() >= self._next_try:
            self._start()
        if self._hints is None:
            self._sleep(min(longest_s, _pause(idle_s, LONGEST_BLIND_S)))
        else:
            # A commit can be seen a little after its hint, so looks follow a hint closely at first.
            quiet_s = time.monotonic() - self._hinted_at
            self._sleep(min(longest_s, _pause(quiet_s, LONGEST_PAUSE_S)), self._hints)

    def rest(self, idle_s: float, longest_s: float) -> None:
        """Wait deaf to hints, after a look at a change that did not concern the caller.

        Others may write all the time, and looking at each of their commits would cost more than polling.
        Arguments are those of `wait`. Who saw something of its own a moment ago does not rest at all.
        """
        if idle_s >= 8 * SHORTEST_PAUSE_S:
            self._sleep(min(longest_s, _pause(idle_s, LONGEST_BLIND_S)))

    def wake(self) -> None:
        """Make `wait`, or the next one, return at once."""
        with self._closing:
            if self._pipe is not None:
                try:
                    os.write(self._pipe[1], b"x")
                except BlockingIOError:
                    pass  # so many wakes are waiting that one more does not matter

    def close(self) -> None:
        """Give back all descriptors. Idempotent. Not while another thread is in `wait` or `rest`."""
        self._stop()
        with self._closing:  # `wake` must not write to a descriptor that has become another's
            pipe, self._pipe = self._pipe, None
            for descriptor in pipe or ():
                os.close(descriptor)

    # -- inside

    def _sleep(self, seconds: float, hints: int | None = None) -> None:
        """Until the time is over, `wake`, or a hint."""
        ear = self._pipe[0] if self._pipe else None
        poll = select.poll()
        for descriptor in (ear, hints):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)]
        if ear in ready:
            os.read(ear, 4096)
        elif hints in ready:
            self._read_hints()

    def _read_hints(self) -> None:
        assert self._hints is not None
        events = os.read(self._hints, 65536)
        at = 0
        while at < len(events):
            _, mask, _, length = EVENT.unpack_from(events, at)
            at += EVENT.size + length
            if mask & FILE_GONE:
                self._stop()
                return
        self._hinted_at = time.monotonic()
        time.sleep(COMMIT_S)

    def _start(self) -> None:
        self._next_try = time.monotonic() + RETRY_S
        if sys.platform == "linux":
            self._hints = _watch_writes(self._log)

    def _stop(self) -> None:
        if self._hints is not None:
            os.close(self._hints)
            self._hints = None


class WatchPool:
    """Watches of one file to borrow, for threads that wait now and then. After a fork the child has its own.

    They are kept, because the system takes some 15 ms to end one. Who comes when all are borrowed waits blind.
    """

    def __init__(self, path: str, most: int = 4) -> None:
        self._path = path
        self._most = most
        self._pid = os.getpid()
        self._free: deque[Watch | None] = deque([None] * most)  # None: may be made

    @contextmanager
    def borrow(self) -> Iterator[Watch]:
        """A watch for one thread, until the block ends."""
        if self._pid != os.getpid():
            # Reading the hints of a descriptor shared with the parent would take them from it.
            self._pid = os.getpid()
            self.close()
            self._free = deque([None] * self._most)
        free = self._free
        try:
            watch = free.pop() or Watch(self._path)
        except IndexError:
            yield Watch(self._path, blind=True)
            return
        try:
            yield watch
        finally:
            free.append(watch)

    def close(self) -> None:
        """End the watches that nobody has borrowed. Idempotent; new ones are made when needed."""
        for _ in range(len(self._free)):
            watch = self._free.popleft()
            if watch is not None:
                watch.close()
            self._free.append(None)


def _pause(quiet_s: float, longest_s: float) -> float:
    """Proportional: what comes soon is seen at once, what comes late is late by an eighth at most."""
    return min(longest_s, max(SHORTEST_PAUSE_S, quiet_s / 8))


def _watch_writes(path: bytes) -> int | None:
    """An inotify descriptor for the writes to a file; None when there can be none."""
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    except (OSError, AttributeError):
        return None  # a C library without it
    if descriptor < 0:
        return None  # mostly: too many instances of this user
    if libc.inotify_add_watch(descriptor, path, IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF) < 0:
        os.close(descriptor)
        return None
    return descriptor
