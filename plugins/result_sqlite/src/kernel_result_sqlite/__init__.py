"""Results in one SQLite file: the embedded default. Needs no worker and no server.

The embedded broker keeps its messages in the same file and shares `database` and `location`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import SqliteResults

__all__ = ["SqliteResults"]


def __getattr__(name: str) -> object:
    """Load the backend when it is asked for: the broker's publisher needs only what it shares with it."""
    if name == "SqliteResults":
        from .results import SqliteResults

        return SqliteResults
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
