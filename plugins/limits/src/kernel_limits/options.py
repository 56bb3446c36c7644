"""The options of the plugin: section `limits`. Names and defaults of revokes are Celery's."""

from __future__ import annotations

from dataclasses import dataclass

from kernel_worker.options import at_least, duration, option

from .rates import parse_rate


def _rate(value: object) -> str | None:
    return str(value) if parse_rate(value) else None


@dataclass(frozen=True, slots=True)
class LimitsOptions:
    """Section `limits`."""

    statedb: str | None = option(
        None, "--statedb", celery="worker_state_db", metavar="PATH", help="Keep revoked tasks in this file, too."
    )
    without_mingle: bool = option(
        False, "--without-mingle", is_flag=True, help="Do not ask other workers at the start what they have revoked."
    )
    disable_rate_limits: bool = option(
        False, "--disable-rate-limits", celery="worker_disable_rate_limits", is_flag=True, help="Limit no task's rate."
    )
    default_rate_limit: str | None = option(
        None, celery="task_default_rate_limit", parse=_rate, help="Rate limit of tasks that have none, e.g. 10/s."
    )
    revokes_max: int = option(
        50_000, env="CELERY_WORKER_REVOKES_MAX", parse=at_least(1), help="Revoked task ids kept in memory."
    )
    revoke_expires: float = option(
        10_800.0, env="CELERY_WORKER_REVOKE_EXPIRES", parse=duration, help="How long a revoke holds, in seconds."
    )
