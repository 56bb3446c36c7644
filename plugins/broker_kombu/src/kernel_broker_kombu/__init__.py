"""Brokers for kombu's transports: files and Amazon SQS by drivers of their own, the rest through kombu itself.

`filesystem`, `sqs` and `transport` are the workers' sides, the `publisher` modules those of clients, which need no
worker: that is why importing this package imports none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .filesystem.broker import FilesystemBroker
    from .filesystem.publisher import FilesystemPublisher
    from .publisher import KombuPublisher
    from .sqs.broker import SqsBroker
    from .sqs.publisher import SqsPublisher
    from .transport import KombuBroker, MemoryBroker

__all__ = [
    "FilesystemBroker",
    "FilesystemPublisher",
    "KombuBroker",
    "KombuPublisher",
    "MemoryBroker",
    "SqsBroker",
    "SqsPublisher",
]

_PLACES = {
    "FilesystemBroker": ".filesystem.broker",
    "FilesystemPublisher": ".filesystem.publisher",
    "KombuBroker": ".transport",
    "KombuPublisher": ".publisher",
    "MemoryBroker": ".transport",
    "SqsBroker": ".sqs.broker",
    "SqsPublisher": ".sqs.publisher",
}


def __getattr__(name: str) -> object:
    """Load a side of a driver when it is asked for."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
