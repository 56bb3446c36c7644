"""The hooks: options, the boot step and the admission filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kernel_worker.hookspecs import hookimpl

if TYPE_CHECKING:
    from kernel_worker.config import Config
    from kernel_worker.request import Request
    from kernel_worker.steps import Bootstep
    from kernel_worker.types import Settlement
    from kernel_worker.worker import Worker

    from .limits import Limits

kw_api = 1

MINGLE_AFTER_S = 0.3
"""How long a new worker takes tasks before it asks the others."""


def limits_of(worker: Worker) -> Limits:
    """The limits of a worker whose step `limits` is up."""
    found: Limits = worker.sequence.apis["limits"]
    return found


@hookimpl
def kw_options() -> type:
    """Section `limits`."""
    from .options import LimitsOptions

    return LimitsOptions


@hookimpl
def kw_bootsteps(config: Config) -> list[Bootstep]:
    """The step `limits`."""
    from .step import LimitsStep

    return [LimitsStep()]


@hookimpl
def kw_admission(config: Config, worker: Worker) -> Callable[[Request], Settlement | None]:
    """Revokes and rate limits. Revokes may come at any time, so there is always a filter."""
    return limits_of(worker).admit


@hookimpl
def kw_worker_ready(worker: Worker) -> None:
    """End revoked tasks that are not due when they arrive; ask the other workers what they have revoked."""
    worker.dispatcher.has_ended = limits_of(worker).has_ended
    worker.loop.call_later(MINGLE_AFTER_S, limits_of(worker).mingle)


@hookimpl
def kw_broker_up(worker: Worker) -> None:
    """Revokes may have been missed while the broker was away."""
    limits_of(worker).keeper.refresh()


@hookimpl
def kw_stats(worker: Worker) -> Mapping[str, Any]:
    """How many revokes are held, and the rate limits in force."""
    limits = limits_of(worker)
    revokes = limits.revokes
    return {"limits": {"revoked": len(revokes.ids), "forgotten": revokes.forgotten, "rate_limits": dict(limits.rates)}}
