"""The reactor: descriptors, timers, callbacks from other threads, signals. One thread turns it.

Imports nothing of the kernel. Posted callbacks run in the order they were posted (FIFO); a callback that
raises is logged with its owner and never ends the loop. `at_turn_end` callbacks run once per turn, after
everything else: that is where sends and settlements are batched.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

log = logging.getLogger("kernel_worker.loop")

LONGEST_WAIT_S = 3600.0
"""A turn waits no longer, whatever the timers say: `epoll` refuses more than 2**31 ms."""

Callback = Callable[..., object]


class Timer:
    """One pending call; `cancel()` forgets it."""

    __slots__ = ("args", "callback", "when")

    def __init__(self, when: float, callback: Callback | None, args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback = callback
        self.args = args

    def cancel(self) -> None:
        """Never call it. Loop thread."""
        self.callback = None
        self.args = ()


class Loop:
    """A `selectors` loop. Every method but `post` belongs to the loop's thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._posted: deque[tuple[Callback, tuple[Any, ...]]] = deque()
        self._turn_end: list[Callback] = []
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._wake_pending = False
        self._signals: dict[int, Callback] = {}
        self._signal_r: socket.socket | None = None
        self._signal_w: socket.socket | None = None
        self.turned_at = time.monotonic()
        """When the last turn began (monotonic seconds): the age of it is the liveness of the worker."""
        self.add_reader(self._wake_r, self._drain_wake)

    # -- descriptors

    def add_reader(self, fd: Any, callback: Callback, *args: Any) -> None:
        """Call `callback(*args)` whenever `fd` can be read; replaces an earlier reader of `fd`."""
        self.remove(fd)
        self._selector.register(fd, selectors.EVENT_READ, (callback, args, None, ()))

    def set_writer(self, fd: Any, callback: Callback | None, *args: Any) -> None:
        """Call `callback(*args)` whenever `fd` can be written; None stops it. `fd` must have a reader."""
        reader, reader_args, _, _ = self._selector.get_key(fd).data
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if callback else 0)
        self._selector.modify(fd, events, (reader, reader_args, callback, args))

    def remove(self, fd: Any) -> None:
        """Forget a descriptor; unknown ones are ignored. Call it before closing the descriptor."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            pass

    # -- callbacks

    def post(self, callback: Callback, *args: Any) -> None:
        """Run `callback(*args)` on the loop thread, soon, in order. Any thread."""
        self._posted.append((callback, args))
        if not self._wake_pending:
            self._wake_pending = True
            try:
                self._wake_w.send(b"\0")
            except (BlockingIOError, OSError):
                pass  # full: the loop is woken anyway; closed: the loop has ended

    def call_later(self, delay_s: float, callback: Callback, *args: Any) -> Timer:
        """Run `callback(*args)` once, `delay_s` seconds from now."""
        timer = Timer(time.monotonic() + delay_s, callback, args)
        heapq.heappush(self._timers, (timer.when, next(self._sequence), timer))
        return timer

    def at_turn_end(self, callback: Callback) -> None:
        """Run `callback()` at the end of every turn."""
        self._turn_end.append(callback)

    # -- signals

    def install_signals(self, handlers: dict[int, Callback]) -> None:
        """Handle signals on the loop thread. To be called on the process's main thread, which may be
        another one than the loop's (solo): the C-level handler writes the number into a socket."""
        if self._signal_w is None:
            self._signal_r, self._signal_w = socket.socketpair()
            self._signal_r.setblocking(False)
            self._signal_w.setblocking(False)
            self.add_reader(self._signal_r, self._drain_signals)
        signal.set_wakeup_fd(self._signal_w.fileno(), warn_on_full_buffer=False)
        self._signals.update(handlers)
        for number in handlers:
            signal.signal(number, lambda *_: None)

    def _drain_signals(self) -> None:
        assert self._signal_r is not None
        try:
            numbers: Iterable[int] = self._signal_r.recv(4096)
        except BlockingIOError:
            return
        for number in numbers:
            if (handler := self._signals.get(number)) is not None:
                self._call(handler, (number,))

    # -- turning

    def turn(self, timeout_s: float | None = None) -> None:
        """One turn: wait for something, at most `timeout_s` seconds, and run what is due."""
        if self._posted:
            timeout_s = 0.0
        elif self._timers:
            until = min(max(0.0, self._timers[0][0] - time.monotonic()), LONGEST_WAIT_S)
            timeout_s = until if timeout_s is None else min(timeout_s, until)
        events = self._selector.select(timeout_s)
        self.turned_at = time.monotonic()
        for key, mask in events:
            if self._selector.get_map().get(key.fd) is not key:
                continue  # an earlier callback of this turn removed or changed it; if changed, it comes again
            reader, reader_args, writer, writer_args = key.data
            if mask & selectors.EVENT_READ:
                self._call(reader, reader_args)
            if mask & selectors.EVENT_WRITE and writer is not None:
                self._call(writer, writer_args)
        self._run_posted()
        self._run_timers()
        for callback in self._turn_end:
            self._call(callback, ())

    def run_until(self, condition: Callable[[], object], deadline: float | None = None) -> bool:
        """Turn until `condition()` holds; False when the monotonic `deadline` passed first.

        May be called from a callback's caller, never from within a callback.
        """
        wait = 0.0  # first a turn without waiting: its end sends what the caller has just queued
        while not condition():
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(min(wait, left))
            wait = 1.0
        return True

    def close(self) -> None:
        """Give back the descriptors of the loop itself."""
        if self._signal_w is not None and self._signal_r is not None:
            signal.set_wakeup_fd(-1)
            self._signal_r.close()
            self._signal_w.close()
        self._selector.close()
        self._wake_r.close()
        self._wake_w.close()

    def _drain_wake(self) -> None:
        # Cleared after the drain: a post in between sends no byte, and runs in this very turn. The other way round
        # its byte would be drained while the flag says that one is on its way: nothing could wake the loop again.
        try:
            self._wake_r.recv(4096)
        except BlockingIOError:
            pass
        self._wake_pending = False

    def _run_posted(self) -> None:
        for _ in range(len(self._posted)):  # those posted meanwhile wait for the next turn
            callback, args = self._posted.popleft()
            self._call(callback, args)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.callback, timer.args)

    def _call(self, callback: Callback, args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception:  # the boundary of the loop: one owner's bug must not stop all others
            owner = getattr(callback, "__qualname__", repr(callback))
            log.exception("callback %s failed", owner, extra={"action": "callback_failed", "owner": owner})
