"""Call the hooks of the kernel process: one typed method per spec of `hookspecs`, and nothing else touches pluggy.

Each implementation is wrapped when its plugin is registered, so that an exception names the plugin, a hook
that hangs can be named too (`running`), and an answer can be traced to its owner. All on the thread
that composes the worker and, later, runs its loop; never per message.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .errors import KernelWorkerError, PluginError
from .nearest import did_you_mean

if TYPE_CHECKING:
    from .bus import Bus
    from .config import Config, Draft
    from .drivers import ControlCommand
    from .registry import Command, HealthCheck
    from .request import Request
    from .steps import Bootstep
    from .types import Outcome, Settlement
    from .worker import Worker


_SINGLE_STEPS = ("pool", "consumer", "timer", "autoscaler", "control")
_CONTRIBUTIONS = frozenset(
    {"kw_bootsteps", "kw_commands", "kw_control_commands", "kw_health"} | {f"kw_{name}_step" for name in _SINGLE_STEPS}
)
"""Hooks called once, whose answers are remembered with the plugin that gave them."""


class _Watched:
    """A plugin's hook implementations as attributes. Compared by identity, as pluggy does with plugins."""


class Hooks:
    """The registered plugins as callables. What a hook raises comes out as `PluginError`, except for the
    kernel's own errors (a `ConfigError` refuses a setting), which pass unchanged."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._owners: dict[str, object] = {}
        self._answers: list[tuple[str, Any]] = []
        self._contributed: list[tuple[object, str]] = []
        self.running: tuple[str, str] | None = None
        """Hook and plugin being called at this moment; read by whoever reports that something hangs."""
        self.kw_add_hookspecs()

    # ------------------------------------------------------------------ plugins

    def register(self, plugin: object, name: str, owner: object = "") -> None:
        """Add a plugin: a module or an object with hook implementations. Those added later are called earlier.

        :param name: its entry point's name, which is also its section in the configuration.
        :param owner: prints as "name (distribution version)"; only ever formatted for an error text.
        :raises PluginError: it states no `kw_api`, or another one; it takes arguments that a spec does not have.
        """
        self._owners[name] = owner or name
        api = getattr(plugin, "kw_api", None)
        if api != hookspecs.API:
            says = "does not state kw_api" if api is None else f"was written for kw_api {api!r}"
            raise PluginError(
                f"plugin {self.owner_of(name)} {says}; this kernel has kw_api {hookspecs.API}",
                hint=f"a module of the group kernel_worker.plugins states: kw_api = {hookspecs.API}",
            )
        try:
            self._manager.register(self._watched(plugin, name), name)
        except (pluggy.PluginValidationError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise PluginError(f"plugin {self.owner_of(name)} does not fit the hook specs: {reason}") from error

    def add_hookspecs(self, module: ModuleType) -> None:
        """Add specs of a plugin's own, for other plugins to implement; see `kw_add_hookspecs`."""
        self._manager.add_hookspecs(module)

    def check(self) -> None:
        """Refuse implementations of hooks that nobody specified: misspelt ones would never be called.

        :raises PluginError: names the plugin and the nearest hook.
        """
        known = [name for name in vars(self._manager.hook) if name.startswith("kw_")]
        specified = [name for name in known if getattr(self._manager.hook, name).has_spec()]
        for name in known:
            caller = getattr(self._manager.hook, name)
            required = [impl for impl in caller.get_hookimpls() if not impl.optionalhook]
            if not caller.has_spec() and required:
                raise PluginError(
                    f"plugin {self.owner_of(required[0].plugin_name)} implements {name}: there is no such hook"
                    + did_you_mean(name, specified)
                )

    @property
    def plugins(self) -> list[str]:
        """Names of the registered plugins, in the order in which they are called."""
        return [name for name, _ in reversed(self._manager.list_name_plugin())]

    def owner_of(self, name: str) -> str:
        """A plugin for people: "health (kernel-health 0.1.0)"."""
        return str(self._owners.get(name, name))

    def contributor(self, answer: object) -> str:
        """The plugin that a hook's answer (a boot step, a command) came from, for people; "" if from none."""
        return next((self.owner_of(name) for found, name in self._contributed if found is answer), "")

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook by name: for specs that plugins add. The kernel's own have a method each.

        :return: the list of answers, or for `firstresult` specs the answer or None.
        :raises PluginError: an implementation raised.
        """
        self._answers = []
        try:
            found = getattr(self._manager.hook, hook)(**arguments)
        except KernelWorkerError:
            raise
        except Exception as error:  # only a hook wrapper can be at fault here; implementations are watched
            raise PluginError(f"a wrapper of {hook} failed: {type(error).__name__}: {error}") from error
        for name, answer in self._answers if hook in _CONTRIBUTIONS else ():
            parts = answer if isinstance(answer, (list, tuple)) else [answer]
            self._contributed += [(part, name) for part in parts]
        return found

    def boot_steps(self, config: Config) -> tuple[list[Bootstep], dict[str, str]]:
        """The boot steps of all hooks that give some, and the plugin behind each by the step's name.

        :raises PluginError: the answer to one of the single hooks has another name than its spec says.
        """
        steps = []
        for name in _SINGLE_STEPS:
            step: Bootstep | None = getattr(self, f"kw_{name}_step")(config)
            if step is None:
                continue
            if step.name != name:
                raise PluginError(
                    f"the step that {self.contributor(step)} gives in kw_{name}_step is named {step.name!r}",
                    hint=f"others require it by the name {name!r}",
                )
            steps.append(step)
        steps += self.kw_bootsteps(config)
        return steps, {step.name: self.contributor(step) for step in steps}

    def _watched(self, plugin: object, name: str) -> object:
        """A stand-in for the plugin whose hook implementations are watched."""
        watched = _Watched()
        for attribute in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                function = getattr(plugin, attribute)
                plain = not (options["wrapper"] or options["hookwrapper"])
                setattr(watched, attribute, self._watch(function, attribute, name) if plain else function)
        return watched

    def _watch(self, function: Callable[..., Any], hook: str, name: str) -> Callable[..., Any]:
        @functools.wraps(function)  # pluggy reads marker and arguments through it
        def watched(*arguments: Any) -> Any:  # pluggy passes positionally
            before, self.running = self.running, (hook, name)
            try:
                answer = function(*arguments)
                if inspect.isgenerator(answer):
                    answer = list(answer)
            except KernelWorkerError:
                raise
            except Exception as error:
                raise PluginError(
                    f"plugin {self.owner_of(name)} failed in {hook}: {type(error).__name__}: {error}"
                ) from error
            finally:
                self.running = before
            if answer is not None:
                self._answers.append((name, answer))
            return answer

        return watched

    def _gather(self, hook: str, **arguments: Any) -> list[Any]:
        return [part for answer in self.call(hook, **arguments) for part in answer]

    # ------------------------------------------------------------------ one method per spec

    def kw_add_hookspecs(self) -> None:
        """Offer `add_hookspecs` to plugins, those registered later included. Called once, by `__init__`."""
        self._manager.hook.kw_add_hookspecs.call_historic(kwargs={"registry": self})

    def kw_options(self) -> dict[str, type]:
        """Options class of each plugin that has one, by the plugin's name."""
        self.call("kw_options")
        return dict(self._answers)

    def kw_commands(self) -> list[Command]:
        """Sub-commands of `kw`."""
        return self._gather("kw_commands")

    def kw_configure(self, draft: Draft) -> None:
        """Let plugins check and change the configuration before it is frozen."""
        self.call("kw_configure", draft=draft)

    def kw_pool_step(self, config: Config) -> Bootstep | None:
        """The boot step that keeps executors alive."""
        answer: Bootstep | None = self.call("kw_pool_step", config=config)
        return answer

    def kw_consumer_step(self, config: Config) -> Bootstep | None:
        """The boot step that consumes."""
        answer: Bootstep | None = self.call("kw_consumer_step", config=config)
        return answer

    def kw_timer_step(self, config: Config) -> Bootstep | None:
        """The boot step for periodic work."""
        answer: Bootstep | None = self.call("kw_timer_step", config=config)
        return answer

    def kw_autoscaler_step(self, config: Config) -> Bootstep | None:
        """The boot step that resizes the pool, if a plugin has one."""
        answer: Bootstep | None = self.call("kw_autoscaler_step", config=config)
        return answer

    def kw_control_step(self, config: Config) -> Bootstep | None:
        """The boot step that listens for remote control, if a plugin has one."""
        answer: Bootstep | None = self.call("kw_control_step", config=config)
        return answer

    def kw_control_commands(self, config: Config) -> list[ControlCommand]:
        """Remote-control commands."""
        return self._gather("kw_control_commands", config=config)

    def kw_bootsteps(self, config: Config) -> list[Bootstep]:
        """Further boot steps."""
        return self._gather("kw_bootsteps", config=config)

    def kw_subscribe(self, bus: Bus, config: Config) -> None:
        """Let plugins subscribe to the events of requests."""
        self.call("kw_subscribe", bus=bus, config=config)

    def kw_admission(self, config: Config, worker: Worker) -> list[Callable[[Request], Settlement | None]]:
        """Filters that see a request before it may run."""
        answer: list[Callable[[Request], Settlement | None]] = self.call("kw_admission", config=config, worker=worker)
        return answer

    def kw_settle_policy(self, config: Config) -> Callable[[Request, Outcome], Settlement] | None:
        """A plugin's replacement for the ack policy."""
        answer: Callable[[Request, Outcome], Settlement] | None = self.call("kw_settle_policy", config=config)
        return answer

    def kw_worker_starting(self, worker: Worker) -> None:
        """Composed, nothing started."""
        self.call("kw_worker_starting", worker=worker)

    def kw_worker_ready(self, worker: Worker) -> None:
        """Everything runs."""
        self.call("kw_worker_ready", worker=worker)

    def kw_worker_closing(self, worker: Worker, reason: str) -> None:
        """Shutdown began."""
        self.call("kw_worker_closing", worker=worker, reason=reason)

    def kw_worker_stopped(self, worker: Worker, exit_code: int) -> None:
        """All steps are stopped."""
        self.call("kw_worker_stopped", worker=worker, exit_code=exit_code)

    def kw_broker_up(self, worker: Worker) -> None:
        """Connected."""
        self.call("kw_broker_up", worker=worker)

    def kw_broker_down(self, worker: Worker, error: str) -> None:
        """Connection lost."""
        self.call("kw_broker_down", worker=worker, error=error)

    def kw_executor_up(self, worker: Worker, pid: int) -> None:
        """An executor is ready."""
        self.call("kw_executor_up", worker=worker, pid=pid)

    def kw_executor_down(self, worker: Worker, pid: int, reason: str) -> None:
        """An executor has ended."""
        self.call("kw_executor_down", worker=worker, pid=pid, reason=reason)

    def kw_health(self, worker: Worker) -> list[HealthCheck]:
        """Health checks."""
        return self._gather("kw_health", worker=worker)

    def kw_stats(self, worker: Worker) -> dict[str, Any]:
        """Statistics of all plugins, merged; of two equal keys the one of the plugin called first stays."""
        merged: dict[str, Any] = {}
        answers: Iterable[Mapping[str, Any]] = self.call("kw_stats", worker=worker)
        for answer in answers:
            merged = {**answer, **merged}
        return merged

    def kw_report(self, config: Config | None) -> list[tuple[str, str]]:
        """Lines for `kw report`."""
        return self._gather("kw_report", config=config)
