"""The hooks of the kernel process: each docstring is the contract.

pluggy composes: many plugins answer one question, at composition, start, stop or a change of state,
never per message. A plugin is a module (or object) registered under the entry-point group
`kernel_worker.plugins`; it states `kw_api = 1` and marks its functions with `hookimpl`.

All hooks run in the kernel process, on its loop thread unless the spec says otherwise. No user code of
tasks runs there. An exception in a hook is raised as `PluginError` naming plugin, distribution and hook.

The boot steps of a worker come from five hooks with one answer each (pool, consumer, timer,
autoscaler, control) and one with many (`kw_bootsteps`). The kernel's own steps are contributed through
the same hooks by `kernel_worker.builtin`, so a plugin may replace any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from .bus import Bus
    from .config import Config, Draft
    from .drivers import ControlCommand
    from .registry import Command, HealthCheck
    from .request import Request
    from .steps import Bootstep
    from .types import Outcome, Settlement
    from .worker import Worker

PROJECT = "kw"
API = 1
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(historic=True)
def kw_add_hookspecs(registry: Any) -> None:
    """Add hook specs of your own, for other plugins to implement.

    Called once per plugin when it is registered, and for plugins registered before you as well.

    :param registry: call `registry.add_hookspecs(module)`.

    Example::

        @hookimpl
        def kw_add_hookspecs(registry):
            registry.add_hookspecs(my_specs)
    """


@hookspec
def kw_options() -> type | None:
    """Declare the options of your plugin: a frozen dataclass whose fields are made with `option()`.

    Called before the command line is parsed. The section is named after the plugin's entry point;
    the instance is `config.section("<entry point name>")`.

    Example::

        @hookimpl
        def kw_options():
            return HealthOptions
    """


@hookspec
def kw_commands() -> Iterable[Command]:
    """Contribute sub-commands of `kw`.

    Called when `kw` builds its list of commands, without a worker.

    :return: `Command(name, target, help)`; `target` is the import string of a click command and is
        imported only when the command is used.

    Example::

        @hookimpl
        def kw_commands():
            return [Command("call", "kernel_app.cli:call", "Send a task by name.")]
    """


@hookspec
def kw_configure(draft: Draft) -> None:
    """Check or change the configuration after all sources are merged, before it is frozen.

    :param draft: mutable; `draft.get(section, field)`, `draft.set(section, field, value)`.

    Raise `ConfigError` to refuse: the worker does not start, exit code 78.

    Example::

        @hookimpl
        def kw_configure(draft):
            if draft.get("health", "port") == 0:
                raise ConfigError("health: port 0 is not a port", hint="use --health-port 8080")
    """


@hookspec(firstresult=True)
def kw_pool_step(config: Config) -> Bootstep | None:
    """Give the boot step that starts the pool and keeps its executors alive.

    Called once at composition. The first plugin to answer wins; the kernel answers last, with its
    supervisor. The step must be named `pool` and return an object with the `Supervisor`'s methods.

    Example::

        @hookimpl
        def kw_pool_step(config):
            return MySupervisorStep(config)
    """


@hookspec(firstresult=True)
def kw_consumer_step(config: Config) -> Bootstep | None:
    """Give the boot step that takes deliveries from the broker and hands them to the pool.

    Called once at composition. The first plugin to answer wins; the kernel answers last. The step must
    be named `consumer` and require `pool`.

    Example::

        @hookimpl
        def kw_consumer_step(config):
            return FilteringConsumer(config)
    """


@hookspec(firstresult=True)
def kw_timer_step(config: Config) -> Bootstep | None:
    """Give the boot step for periodic work on the loop thread.

    Called once at composition. The kernel's own step is named `timer` and returns `Timers`, whose
    `every(seconds, callback)` other steps use (`requires = ("timer",)`).

    Example::

        @hookimpl
        def kw_timer_step(config):
            return JitteredTimers()
    """


@hookspec(firstresult=True)
def kw_autoscaler_step(config: Config) -> Bootstep | None:
    """Give the boot step that grows and shrinks the pool with the load.

    Called once at composition; there is none unless a plugin answers. The step must be named
    `autoscaler` and require `pool` and `timer`.

    Example::

        @hookimpl
        def kw_autoscaler_step(config):
            section = config.section("autoscale")
            return Autoscaler(section) if section.bounds else None
    """


@hookspec(firstresult=True)
def kw_control_step(config: Config) -> Bootstep | None:
    """Give the boot step that listens for remote-control commands.

    Called once at composition; there is none unless a plugin answers. The step must be named `control`;
    it looks commands up in the worker's `ControlTable` and must use a connection of its own, so
    that losing it never touches consumption.

    Example::

        @hookimpl
        def kw_control_step(config):
            return PidboxStep(config)
    """


@hookspec
def kw_control_commands(config: Config) -> Iterable[ControlCommand]:
    """Contribute remote-control commands, beside those of the entry-point group `kernel_worker.control`.

    Called once at composition. Two commands of one name are an error that names both plugins.

    Example::

        @hookimpl
        def kw_control_commands(config):
            return [ControlCommand("queue_age", queue_age, arguments={"queue": str})]
    """


@hookspec
def kw_bootsteps(config: Config) -> Iterable[Bootstep]:
    """Contribute further steps to the worker's start sequence.

    Called once at composition, before anything is started. Must not do I/O.

    :return: zero or more steps. Order comes from `requires` and `before`, not from the list.

    Example::

        @hookimpl
        def kw_bootsteps(config):
            return [HealthServer(config.section("health"))]
    """


@hookspec
def kw_subscribe(bus: Bus, config: Config) -> None:
    """Register callables for the events of requests: `bus.on(Kind.SUCCEEDED, callback)`.

    Called once at composition. The callbacks run per message on the loop thread and must not block.

    Example::

        @hookimpl
        def kw_subscribe(bus, config):
            bus.on(Kind.FAILED, counter.count)
    """


@hookspec
def kw_admission(config: Config, worker: Worker) -> Callable[[Request], Settlement | None] | None:
    """Give a filter that sees each request before it may run: revokes, rate limits.

    Called once when the consumer starts; the filters are compiled into a tuple. They run per message on the loop
    thread and must not block.

    :param worker: steps that start before the consumer are up.
    :return: a callable that returns None to admit, or a `Settlement` for a request that shall
        not run now; or None when there is nothing to filter. To end a request without running it, the filter sets
        `request.conclude` to the outcome's kind and `request.text`, and admits it: an executor stores that end.

    Example::

        @hookimpl
        def kw_admission(config, worker):
            return lambda request: Settlement(request.delivery, Verdict.REQUEUE) if is_too_much(request) else None
    """


@hookspec(firstresult=True)
def kw_settle_policy(config: Config) -> Callable[[Request, Outcome], Settlement] | None:
    """Replace the policy that turns an outcome into a settlement (`kernel_worker.settle.decide`).

    Called once at composition. The policy runs per message on the loop thread and must be pure.

    Example::

        @hookimpl
        def kw_settle_policy(config):
            return my_decide
    """


@hookspec
def kw_worker_starting(worker: Worker) -> None:
    """The worker is composed; nothing has been started.

    Example::

        @hookimpl
        def kw_worker_starting(worker):
            log.info("starting %s", worker.node)
    """


@hookspec
def kw_worker_ready(worker: Worker) -> None:
    """All steps are started, executors are up, and the worker consumes.

    Example::

        @hookimpl
        def kw_worker_ready(worker):
            notify_systemd("READY=1")
    """


@hookspec
def kw_worker_closing(worker: Worker, reason: str) -> None:
    """Shutdown began. Must not block.

    Example::

        @hookimpl
        def kw_worker_closing(worker, reason):
            notify_systemd("STOPPING=1")
    """


@hookspec
def kw_worker_stopped(worker: Worker, exit_code: int) -> None:
    """All steps are stopped; the process is about to end.

    Example::

        @hookimpl
        def kw_worker_stopped(worker, exit_code):
            log.info("stopped with %d", exit_code)
    """


@hookspec
def kw_broker_up(worker: Worker) -> None:
    """The broker connection is up, at first or again.

    Example::

        @hookimpl
        def kw_broker_up(worker):
            connected.set(1)
    """


@hookspec
def kw_broker_down(worker: Worker, error: str) -> None:
    """The broker connection is lost; the kernel reconnects by itself.

    Example::

        @hookimpl
        def kw_broker_down(worker, error):
            connected.set(0)
    """


@hookspec
def kw_executor_up(worker: Worker, pid: int) -> None:
    """An executor is ready to run tasks.

    Example::

        @hookimpl
        def kw_executor_up(worker, pid):
            starts.inc()
    """


@hookspec
def kw_executor_down(worker: Worker, pid: int, reason: str) -> None:
    """An executor has ended: `reason` is "retired", "exit 1", "signal SIGKILL" and the like.

    Example::

        @hookimpl
        def kw_executor_down(worker, pid, reason):
            deaths.labels(reason).inc()
    """


@hookspec
def kw_health(worker: Worker) -> Iterable[HealthCheck]:
    """Contribute health checks: `HealthCheck(name, check)`, where `check()` returns "" or what is wrong.

    Called once at composition; the checks run on request and must not block.

    Example::

        @hookimpl
        def kw_health(worker):
            return [HealthCheck("disk", lambda: "" if free() > 1 else "disk full")]
    """


@hookspec
def kw_stats(worker: Worker) -> Mapping[str, Any]:
    """Contribute to the worker's statistics (`kw inspect stats`). JSON-able, under keys of your own.

    Example::

        @hookimpl
        def kw_stats(worker):
            return {"cache": {"hits": cache.hits}}
    """


@hookspec
def kw_report(config: Config | None) -> Iterable[tuple[str, str]]:
    """Contribute lines to `kw report`: (label, text). No secrets.

    Example::

        @hookimpl
        def kw_report(config):
            return [("openssl", ssl.OPENSSL_VERSION)]
    """
