"""Commands about tasks and the requests for them."""

from __future__ import annotations

from typing import Any

from kernel_worker import ControlContext, Permission, control_command

DEFAULT_TASK_INFO = ("rate_limit",)


@control_command(args={"safe": bool}, aliases=["dump_active"])
def active(context: ControlContext, safe: bool = False) -> list[dict[str, Any]]:
    """Tasks that run now."""
    return context.operations.active(safe=safe)


@control_command(aliases=["dump_reserved"])
def reserved(context: ControlContext) -> list[dict[str, Any]]:
    """Tasks that were received and do not run yet."""
    return context.operations.reserved()


@control_command(aliases=["dump_schedule"])
def scheduled(context: ControlContext) -> list[dict[str, Any]]:
    """Tasks this worker holds until their time; most brokers hold them."""
    return context.operations.scheduled()


@control_command(args={"ids": object}, variadic="ids")
def query_task(context: ControlContext, ids: Any) -> dict[str, list[Any]]:
    """State of tasks by their ids, as far as this worker holds them."""
    return context.operations.query([ids] if isinstance(ids, str) else _texts(ids, "ids"))


@control_command(args={"taskinfoitems": object, "builtins": bool}, aliases=["dump_tasks"], variadic="taskinfoitems")
def registered(context: ControlContext, taskinfoitems: Any = None, builtins: bool = False) -> list[str]:
    """Names of the tasks, with the attributes asked for."""
    items = _texts(taskinfoitems, "taskinfoitems") if taskinfoitems else DEFAULT_TASK_INFO
    wanted = [item for item in items if not item.startswith("_")]
    tasks = context.worker.app.tasks
    return [_shown(tasks[name], wanted) for name in sorted(tasks) if builtins or not name.startswith("celery.")]


def _shown(task: Any, items: list[str]) -> str:
    found = [f"{item}={value}" for item in items if (value := getattr(task, item, None)) is not None]
    return f"{task.name} [{' '.join(found)}]" if found else str(task.name)


@control_command(permission=Permission.OPERATE, args={"task_name": str, "soft": float, "hard": float})
def time_limit(
    context: ControlContext, task_name: str, hard: float | None = None, soft: float | None = None
) -> dict[str, str]:
    """Set a task's time limits in seconds, for what starts afterwards."""
    for value in (soft, hard):
        if value is not None and not 0 <= value < 1e9:
            raise ValueError(f"a time limit is a number of seconds, not {value!r}")
    if soft and hard and soft > hard:
        raise ValueError(f"the soft limit of {soft:g} s lies above the hard one of {hard:g} s and would never act")
    if not context.operations.set_time_limits(task_name, soft or None, hard or None):
        return {"error": "unknown task"}
    return {"ok": "time limits set successfully"}


def _texts(value: Any, name: str) -> list[str]:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    raise ValueError(f"{name} must be a list of texts")
