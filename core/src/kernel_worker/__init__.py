"""Public names of the kernel; imported lazily, so that an executor loads only what it uses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bus import Bus, Kind
    from .config import Config, Draft, Secret, worker_settings
    from .control import ControlContext, control_command
    from .drivers import (
        AppLoader,
        Broker,
        BrokerContext,
        Call,
        ControlCommand,
        Layout,
        LoadContext,
        LoadedApp,
        Mailbox,
        Native,
        Permission,
        Pool,
        Publisher,
        ResultBackend,
        Runtime,
    )
    from .errors import (
        BrokerRefused,
        BrokerUnavailable,
        ConfigError,
        ExecutorError,
        KernelWorkerError,
        PidfileError,
        PluginError,
        StartError,
        UsageError,
    )
    from .hookspecs import hookimpl
    from .hookspecs_executor import hookimpl as executor_hookimpl
    from .options import OptionSpec, option
    from .registry import Command, HealthCheck
    from .steps import Bootstep
    from .types import (
        AppInfo,
        BrokerCapability,
        DeadLetter,
        Delivery,
        Job,
        Outcome,
        OutcomeKind,
        PoolCapability,
        QueueInfo,
        QueueSpec,
        Settlement,
        StoredResult,
        TaskInfo,
        Verdict,
    )
    from .worker import StepContext

__version__ = "0.1.0"

_HOMES = {
    "bus": ("Bus", "Kind"),
    "config": ("Config", "Draft", "Secret", "worker_settings"),
    "control": ("ControlContext", "control_command"),
    "drivers": (
        "AppLoader",
        "Broker",
        "BrokerContext",
        "Call",
        "ControlCommand",
        "Layout",
        "LoadContext",
        "LoadedApp",
        "Mailbox",
        "Native",
        "Permission",
        "Pool",
        "Publisher",
        "ResultBackend",
        "Runtime",
    ),
    "errors": (
        "BrokerRefused",
        "BrokerUnavailable",
        "ConfigError",
        "ExecutorError",
        "KernelWorkerError",
        "PidfileError",
        "PluginError",
        "StartError",
        "UsageError",
    ),
    "hookspecs": ("hookimpl",),
    "hookspecs_executor": ("executor_hookimpl=hookimpl",),
    "options": ("OptionSpec", "option"),
    "registry": ("Command", "HealthCheck"),
    "steps": ("Bootstep",),
    "worker": ("StepContext",),
    "types": (
        "AppInfo",
        "BrokerCapability",
        "DeadLetter",
        "Delivery",
        "Job",
        "Outcome",
        "OutcomeKind",
        "PoolCapability",
        "QueueInfo",
        "QueueSpec",
        "Settlement",
        "StoredResult",
        "TaskInfo",
        "Verdict",
    ),
}
_HOME = {
    name.partition("=")[0]: (module, name.partition("=")[2] or name)
    for module, names in _HOMES.items()
    for name in names
}

__all__ = [
    "AppInfo",
    "AppLoader",
    "Bootstep",
    "Broker",
    "BrokerCapability",
    "BrokerContext",
    "BrokerRefused",
    "BrokerUnavailable",
    "Bus",
    "Call",
    "Command",
    "Config",
    "ConfigError",
    "ControlCommand",
    "ControlContext",
    "DeadLetter",
    "Delivery",
    "Draft",
    "ExecutorError",
    "HealthCheck",
    "Job",
    "KernelWorkerError",
    "Kind",
    "Layout",
    "LoadContext",
    "LoadedApp",
    "Mailbox",
    "Native",
    "OptionSpec",
    "Outcome",
    "OutcomeKind",
    "Permission",
    "PidfileError",
    "PluginError",
    "Pool",
    "PoolCapability",
    "Publisher",
    "QueueInfo",
    "QueueSpec",
    "ResultBackend",
    "Runtime",
    "Secret",
    "Settlement",
    "StartError",
    "StepContext",
    "StoredResult",
    "TaskInfo",
    "UsageError",
    "Verdict",
    "__version__",
    "control_command",
    "executor_hookimpl",
    "hookimpl",
    "option",
    "worker_settings",
]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value
