"""The embedded broker: messages in one SQLite file, several processes, no server, standard library only.

`broker` is the worker's side, `publisher` the client's, which needs no worker: that is why importing
this package imports neither of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .broker import SqliteBroker
    from .publisher import SqlitePublisher

__all__ = ["SqliteBroker", "SqlitePublisher"]


def __getattr__(name: str) -> object:
    """Load one of the two sides when it is asked for."""
    if name == "SqliteBroker":
        from .broker import SqliteBroker

        return SqliteBroker
    if name == "SqlitePublisher":
        from .publisher import SqlitePublisher

        return SqlitePublisher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
