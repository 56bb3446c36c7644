"""The systems that are compared: how each starts its worker, and its application."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

CONCURRENCY = 2
_programs = Path(sys.executable).parent


@dataclass(frozen=True)
class System:
    """One column of the table.

    :param app: its application module; systems with the same one share the sending side.
    :param command: command line of a worker with `CONCURRENCY` slots.
    """

    name: str
    app: str
    command: Callable[[], list[str]]


def _kw(pool: str = "prefork", slots: int = CONCURRENCY) -> list[str]:
    return [str(_programs / "kw"), "run", "-A", "benchmarks.apps.kw_app", "-P", pool, "-c", str(slots)]


def _celery(*flags: str, pool: str = "prefork", slots: int = CONCURRENCY) -> list[str]:
    program = [str(_programs / "celery"), "-A", "benchmarks.apps.celery_app", "worker", "-l", "WARNING"]
    return [*program, "-P", pool, "-c", str(slots), *flags]


KW = System("kw prefork", "benchmarks.apps.kw_app", _kw)
CELERY = System("Celery prefork", "benchmarks.apps.celery_app", _celery)
CELERY_LEAN = System(
    "Celery leanest",
    "benchmarks.apps.celery_app",
    lambda: _celery("--without-gossip", "--without-mingle", "--without-heartbeat"),
)
ALL = (KW, CELERY, CELERY_LEAN)


def on_pool(system: System, pool: str, slots: int) -> System:
    """The same system with another pool."""
    if system.app == KW.app:
        return replace(system, command=lambda: _kw(pool, slots))
    return replace(system, command=lambda: _celery(pool=pool, slots=slots))
