"""The autoscale plugin: the pool grows with waiting work and shrinks when it is idle. Kernel process, loop thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernel_worker import Bootstep, Config, PoolCapability, UsageError, hookimpl, option
from kernel_worker.options import duration, integer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kernel_worker.config import Draft
    from kernel_worker.worker import Worker

kw_api = 1

__all__ = ["AutoscaleOptions"]


def _bounds(value: Any) -> tuple[int, int]:
    """(MAX, MIN) from "10,2", "10" or [10, 2]."""
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
    if not 1 <= len(parts) <= 2:
        raise ValueError(f"{value!r} is not MAX,MIN, as in 10,2")
    most = integer(parts[0])
    least = integer(parts[1]) if len(parts) == 2 else 1
    check_bounds(most, least)
    return most, least


def check_bounds(most: int, least: int) -> None:
    """Refuse bounds that cannot be kept.

    :raises ValueError: which, and why.
    """
    if least < 1:
        raise ValueError(f"MIN {least} is too small: one slot stays, to store how revoked and lost tasks ended")
    if most < least:
        raise ValueError(f"MAX {most} lies below MIN {least}: the order is MAX,MIN")


def _keepalive(value: Any) -> float:
    seconds = duration(value)
    if seconds <= 0:
        raise ValueError(f"{value!r} is not above zero")
    return seconds


@dataclass(frozen=True, slots=True)
class AutoscaleOptions:
    """Section `autoscale`."""

    bounds: tuple[int, int] | None = option(
        None,
        "--autoscale",
        parse=_bounds,
        metavar="MAX[,MIN]",
        help="Grow and shrink the pool between MIN and MAX tasks at once.",
    )
    keepalive: float = option(
        30.0,
        "--autoscale-keepalive",
        parse=_keepalive,
        metavar="SECONDS",
        help="Slots that were not needed for this long go.",
    )


@hookimpl
def kw_options() -> type:
    """The options of this plugin."""
    return AutoscaleOptions


@hookimpl
def kw_configure(draft: Draft) -> None:
    """Start with MIN, or with the concurrency that was asked for, as far as the bounds allow."""
    bounds = draft.get("autoscale", "bounds")
    if bounds is not None:
        most, least = bounds
        asked = draft.get("worker", "concurrency")
        draft.set("worker", "concurrency", min(max(asked or least, least), most))


@hookimpl
def kw_worker_starting(worker: Worker) -> None:
    """Refuse a pool that cannot grow; have others make their executors large enough to grow in place."""
    bounds = worker.config.section("autoscale").bounds
    if bounds is None:
        return
    if PoolCapability.SEVERAL_SLOTS not in worker.pool.capabilities:
        raise UsageError(
            f"pool {worker.pool_name!r} runs one task at a time, so it cannot grow (--autoscale)",
            hint="use -P prefork, or leave --autoscale out",
        )
    worker.supervisor.most_slots = worker.pool.layout(bounds[0]).slots


@hookimpl
def kw_autoscaler_step(config: Config) -> Bootstep | None:
    """The autoscaler, where bounds are set."""
    section = config.section("autoscale")
    if section.bounds is None:
        return None
    from .step import AutoscalerStep

    return AutoscalerStep(section)


@hookimpl
def kw_stats(worker: Worker) -> Mapping[str, Any]:
    """Bounds and the size of the moment, under Celery's keys."""
    autoscaler: Any = worker.sequence.apis.get("autoscaler")
    info = getattr(autoscaler, "info", None)
    return {"autoscaler": info()} if info is not None else {}
