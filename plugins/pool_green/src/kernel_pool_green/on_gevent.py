"""The runtime on gevent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        with _entry_points_read_once():
            monkey.patch_all()
        self._gevent = gevent
        self._watchers: dict[int, Any] = {}

    def spawn(self, function: Callable[..., object], *args: Any) -> greenlet:
        return self._gevent.spawn_raw(function, *args)

    def new(self, function: Callable[[], object]) -> greenlet:
        return greenlet(function, self._gevent.get_hub())

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


@contextmanager
def _entry_points_read_once() -> Iterator[None]:
    """`patch_all` (gevent 26.9) looks for plugins of its own 25 times, and each time the standard library reads a file of
    every distribution: 0.5 s of the start with 130 of them. Nothing is installed meanwhile, so once is enough."""
    from importlib import metadata

    read, found = metadata.entry_points, metadata.entry_points()
    metadata.entry_points = found.select
    try:
        yield
    finally:
        metadata.entry_points = read
