"""Commands about the pool's size."""

from __future__ import annotations

from typing import Any

from kernel_worker import ControlContext, Permission, control_command

MAX_CONCURRENCY = 10_000
"""A mistyped number must not start processes without end."""


@control_command(permission=Permission.OPERATE, args={"n": int})
def pool_grow(context: ControlContext, n: int = 1) -> dict[str, str]:
    """Run so many more tasks at once."""
    _check(context.operations.concurrency + n, n)
    autoscaler = _autoscaler(context)
    if autoscaler is not None:
        autoscaler.grow(n)
    else:
        context.operations.set_concurrency(context.operations.concurrency + n)
    return {"ok": "pool will grow"}


@control_command(permission=Permission.OPERATE, args={"n": int})
def pool_shrink(context: ControlContext, n: int = 1) -> dict[str, str]:
    """Run so many tasks less at once; none that runs is interrupted."""
    _check(context.operations.concurrency, n)
    autoscaler = _autoscaler(context)
    if autoscaler is not None:
        autoscaler.shrink(n)
    else:
        context.operations.set_concurrency(context.operations.concurrency - n)
    return {"ok": "pool will shrink"}


@control_command(permission=Permission.OPERATE, args={"max": int, "min": int})
def autoscale(context: ControlContext, max: int | None = None, min: int | None = None) -> dict[str, str]:
    """Change the bounds of the autoscaler."""
    autoscaler = _autoscaler(context)
    if autoscaler is None:
        raise ValueError("Autoscale not enabled")
    most = autoscaler.most if max is None else max
    least = autoscaler.least if min is None else min
    _check(most, 1)
    autoscaler.set_bounds(most, least)
    return {"ok": f"autoscale now max={autoscaler.most} min={autoscaler.least}"}


@control_command(permission=Permission.DESTROY, args={"modules": object, "reload": bool, "reloader": object})
def pool_restart(
    context: ControlContext, modules: Any = None, reload: bool = False, reloader: Any = None
) -> dict[str, str]:
    """Replace the executors when they have finished what they run."""
    if not context.worker.app.settings.get("worker_pool_restarts"):
        raise ValueError("Pool restarts not enabled")
    if modules or reload or reloader:
        raise ValueError("no command names modules to import: executors load the application as configured")
    context.operations.restart_pool()
    return {"ok": "reload started"}


def _check(count: int, step: int) -> None:
    if step < 1:
        raise ValueError(f"{step} is not 1 or more")
    if count > MAX_CONCURRENCY:
        raise ValueError(f"{count} tasks at once are too many: at most {MAX_CONCURRENCY}")


def _autoscaler(context: ControlContext) -> Any:
    return context.worker.sequence.apis.get("autoscaler")
