"""Results as messages to the client that asked, in Celery's form (`rpc://`): a Celery client reads what a `kw` worker
answered, and the other way round. Needs no worker and imports nothing of the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .results import RpcResults

__all__ = ["RpcResults"]


def __getattr__(name: str) -> Any:
    if name == "RpcResults":
        from .results import RpcResults

        return RpcResults
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
