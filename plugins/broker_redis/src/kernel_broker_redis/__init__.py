"""Redis broker of kernel-worker: kombu's keys and envelope, so that Celery and kombu peers share the queues.

Names are imported when first asked for. A client that only sends imports `kernel_broker_redis.publisher` and so
never imports the worker's kernel; nobody imports hiredis before a connection is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .broker import RedisBroker
    from .publisher import RedisPublisher

__all__ = ["RedisBroker", "RedisPublisher"]


def __getattr__(name: str) -> Any:
    if name == "RedisBroker":
        from .broker import RedisBroker

        return RedisBroker
    if name == "RedisPublisher":
        from .publisher import RedisPublisher

        return RedisPublisher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
