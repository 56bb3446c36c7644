"""Threads, locks and waiting as the system has them, whatever is patched later: imported before `prepare`."""

from __future__ import annotations

import select
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Sequence
from typing import Any

_poll = select.poll
_POLLIN = select.POLLIN


class SystemNative:
    """See `kernel_worker.Native`."""

    def start_thread(self, target: Callable[[], object]) -> None:
        start_new_thread(target, ())

    def lock(self) -> Any:
        return allocate_lock()

    def poll(self, fds: Sequence[int], timeout: float) -> list[int]:
        waiting = _poll()
        for fd in fds:
            waiting.register(fd, _POLLIN)
        return [fd for fd, _ in waiting.poll(timeout * 1000)]
