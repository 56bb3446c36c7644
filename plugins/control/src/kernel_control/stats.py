"""The command `stats`, with the keys that Celery's clients and Flower read."""

from __future__ import annotations

import os
import resource
import time
from typing import Any
from urllib.parse import unquote, urlsplit

from kernel_worker import ControlContext, control_command

from .node import censored

_RUSAGE = (
    "utime",
    "stime",
    "maxrss",
    "ixrss",
    "idrss",
    "isrss",
    "minflt",
    "majflt",
    "nswap",
    "inblock",
    "oublock",
    "msgsnd",
    "msgrcv",
    "nsignals",
    "nvcsw",
    "nivcsw",
)


@control_command()
def stats(context: ControlContext) -> dict[str, Any]:
    """Counters of the worker, its pool, its broker and its process."""
    worker = context.worker
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        **worker.hooks.kw_stats(worker),
        "total": context.operations.totals(),
        "pid": os.getpid(),
        "clock": str(context.clock.value),
        "uptime": int(time.time() - worker.started_at),
        "pool": _pool(context),
        "broker": _broker(context),
        "prefetch_count": worker.dispatcher.prefetch_count,
        "rusage": {name: getattr(usage, f"ru_{name}") for name in _RUSAGE},
    }


def _pool(context: ControlContext) -> dict[str, Any]:
    worker = context.worker
    options = worker.config.worker
    executors = [handle for handle in worker.supervisor.executors.values() if handle.up]
    busy = sum(bool(handle.outstanding) for handle in executors)
    completed = worker.dispatcher.completed
    share = "0.00%" if not completed or not executors else f"{100 / len(executors):.2f}%"
    return {
        "implementation": f"{type(worker.pool).__module__}:{type(worker.pool).__qualname__}",
        "max-concurrency": context.operations.concurrency,
        "processes": [handle.pid for handle in executors],
        "max-tasks-per-child": worker.supervisor.succession.max_tasks or "N/A",
        "put-guarded-by-semaphore": False,
        "timeouts": [options.soft_time_limit or 0, options.time_limit or 0],
        "threads": sum(handle.slots for handle in executors),
        "restarts": worker.supervisor.restarts,
        "writes": {
            "total": completed,
            "avg": share,
            "all": "",
            "raw": "",
            "strategy": "kw",
            "inqueues": {"total": len(executors), "active": busy},
        },
    }


def _broker(context: ControlContext) -> dict[str, Any]:
    worker = context.worker
    settings = worker.app.settings
    first, *others = worker.broker_url.reveal().split(";")
    parts = urlsplit(first)
    try:
        port = parts.port
    except ValueError:
        port = None
    return {
        "hostname": parts.hostname or parts.path,
        "userid": unquote(parts.username) if parts.username else None,
        "virtual_host": parts.path.lstrip("/") or "/",
        "port": port,
        "insist": False,
        "ssl": bool(settings.get("broker_use_ssl")) or parts.scheme in ("rediss", "amqps"),
        "transport": parts.scheme,
        "connect_timeout": settings.get("broker_connection_timeout", 4),
        "transport_options": censored("", settings.get("broker_transport_options") or {}),
        "login_method": settings.get("broker_login_method"),
        "uri_prefix": None,
        "heartbeat": settings.get("broker_heartbeat", 0.0),
        "failover_strategy": "round-robin",
        "alternates": [censored("", url) for url in others],
        "credential_provider": None,
    }
