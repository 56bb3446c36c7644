"""The runtime on gevent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import greenlet

from kernel_worker.loading import LoadError

from .runtime import GreenRuntime


class GeventRuntime(GreenRuntime):
    """Greenlets on gevent's hub; the standard library is patched as a whole."""

    def prepare(self) -> None:
        try:
            import gevent
            from gevent import monkey
        except ImportError as error:
            raise LoadError(f"pool 'gevent' needs gevent: pip install kernel-pool-gevent ({error})", "usage") from error
        monkey.patch_all()
        self._gevent = gevent
        self._watchers: dict[int, Any] = {}

    def spawn(self, function: Callable[..., object], *args: Any) -> greenlet:
        return self._gevent.spawn_raw(function, *args)

    def call_in_hub(self, function: Callable[..., object], *args: Any) -> None:
        self._gevent.get_hub().loop.run_callback(function, *args)

    def wait_readable(self, fd: int) -> None:
        hub = self._gevent.get_hub()
        watcher = self._watchers.get(fd)
        if watcher is None:
            watcher = self._watchers[fd] = hub.loop.io(fd, 1)  # 1: readable
        hub.wait(watcher)

    def wait_for_switch(self) -> None:
        self._gevent.get_hub().switch()
