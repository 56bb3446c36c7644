"""Results in Redis, in Celery's layout: a Celery client reads what `kw` stored, and the other way round.

Also the home of what every Redis driver of the project needs: `server` (URLs), `connection` (RESP3 over hiredis) and
`pool`. Needs no worker and imports nothing of the kernel. Importing this package imports none of its modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .results import RedisResults

__all__ = ["RedisResults"]


def __getattr__(name: str) -> Any:
    if name == "RedisResults":
        from .results import RedisResults

        return RedisResults
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
