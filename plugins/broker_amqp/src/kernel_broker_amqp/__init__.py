"""RabbitMQ broker of kernel-worker: Celery's queues and exchanges, so that Celery and kombu peers share them.

Names are imported when first asked for. A client that only sends imports `kernel_broker_amqp.publisher` and so
never imports the worker's kernel; nobody imports py-amqp before a connection is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .broker import AmqpBroker
    from .publisher import AmqpPublisher

__all__ = ["AmqpBroker", "AmqpPublisher"]


def __getattr__(name: str) -> Any:
    if name == "AmqpBroker":
        from .broker import AmqpBroker

        return AmqpBroker
    if name == "AmqpPublisher":
        from .publisher import AmqpPublisher

        return AmqpPublisher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
