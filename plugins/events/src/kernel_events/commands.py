"""Remote-control commands: enable_events, disable_events, heartbeat. Loop thread; replies are Celery's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_worker import Permission, control_command

from .plugin import events_of

if TYPE_CHECKING:
    from kernel_worker.control import ControlContext

    from .events import Events


def _events(context: ControlContext) -> Events:
    events = events_of(context.worker)
    if events is None:
        raise ValueError("this worker sends no events: its broker cannot carry them")
    return events


@control_command(permission=Permission.OPERATE)
def enable_events(context: ControlContext) -> dict[str, str]:
    """Send task events."""
    events = _events(context)
    if events.is_enabled:
        return {"ok": "task events already enabled"}
    events.enable()
    return {"ok": "task events enabled"}


@control_command(permission=Permission.OPERATE)
def disable_events(context: ControlContext) -> dict[str, str]:
    """Send no task events any more."""
    events = _events(context)
    if events.is_permanent or not events.is_enabled:
        return {"ok": "task events already disabled"}
    events.disable()
    return {"ok": "task events disabled"}


@control_command(permission=Permission.OPERATE)
def heartbeat(context: ControlContext) -> None:
    """Send a heartbeat at once."""
    _events(context).asked_heartbeat()
