"""The hook façade: answers, order, errors that name the plugin, and equality with the specs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
import pytest

from kernel_worker import hookspecs
from kernel_worker.bus import Bus
from kernel_worker.config import Config, compose
from kernel_worker.errors import ConfigError, PluginError
from kernel_worker.hooks import Hooks
from kernel_worker.hookspecs import hookimpl
from kernel_worker.registry import Command
from kernel_worker.steps import Bootstep


def plugin(**implementations: Any) -> Any:
    """An object with the given functions as hook implementations."""
    made = ModuleType("made")
    made.kw_api = 1  # type: ignore[attr-defined]
    for name, function in implementations.items():
        setattr(made, name, hookimpl(function))
    return made


def hooks_with(**plugins: Any) -> Hooks:
    hooks = Hooks()
    for name, made in plugins.items():
        hooks.register(made, name, f"{name} (kernel-{name} 1.0)")
    return hooks


@pytest.fixture
def config() -> Config:
    return compose({}, environ={}).freeze()


def step(name: str) -> Bootstep:
    made = Bootstep()
    made.name = name
    return made


def raising(error: Exception) -> Any:
    def implementation(config: Any) -> Any:
        raise error

    return implementation


# --------------------------------------------------------------------------- specs and façade


def specs() -> dict[str, Any]:
    return {name: found for name, found in vars(hookspecs).items() if name.startswith("kw_")}


@pytest.mark.parametrize("name", specs())
def test_every_spec_has_a_method_with_its_arguments(name: str) -> None:
    method = inspect.signature(getattr(Hooks, name)).parameters
    # The one spec that hands over the façade itself is called once, by the façade.
    expected = [] if name == "kw_add_hookspecs" else list(inspect.signature(specs()[name]).parameters)

    assert list(method)[1:] == expected


def test_the_facade_calls_no_hook_without_a_spec() -> None:
    assert {name for name in vars(Hooks) if name.startswith("kw_")} == set(specs())


@pytest.mark.parametrize("name", specs())
def test_every_method_reaches_an_implementation(name: str) -> None:
    called: list[str] = []
    arguments = list(inspect.signature(specs()[name]).parameters)
    # pluggy matches arguments by name, so the implementation must carry the spec's.
    implementation = eval(f"lambda {', '.join(arguments)}: called.append({name!r})", {"called": called})
    implementation.__name__ = name
    hooks = hooks_with(probe=plugin(**{name: implementation}))

    if name != "kw_add_hookspecs":
        getattr(hooks, name)(*(None for _ in arguments))

    assert called == [name]


# --------------------------------------------------------------------------- answers


def test_plugins_registered_later_are_called_earlier() -> None:
    hooks = hooks_with(
        first=plugin(kw_commands=lambda: [Command("a", "m:a")]),
        second=plugin(kw_commands=lambda: [Command("b", "m:b"), Command("c", "m:c")]),
    )

    assert [command.name for command in hooks.kw_commands()] == ["b", "c", "a"]
    assert hooks.plugins == ["second", "first"]


def test_options_come_with_the_plugins_name() -> None:
    hooks = hooks_with(
        health=plugin(kw_options=lambda: int),
        silent=plugin(kw_options=lambda: None),
        other=plugin(kw_options=lambda: str),
    )

    assert hooks.kw_options() == {"health": int, "other": str}


def test_the_first_plugin_with_a_step_wins(config: Config) -> None:
    mine = step("pool")
    hooks = hooks_with(
        kernel=plugin(kw_pool_step=lambda config: step("pool")),
        mine=plugin(kw_pool_step=lambda config: mine),
        shy=plugin(kw_pool_step=lambda config: None),
    )

    assert hooks.kw_pool_step(config) is mine
    assert hooks.contributor(mine) == "mine (kernel-mine 1.0)"
    assert hooks.kw_control_step(config) is None


def test_boot_steps_are_gathered_with_their_owners(config: Config) -> None:
    def generator(config: Config) -> Iterator[Bootstep]:
        yield step("health")

    hooks = hooks_with(
        kernel=plugin(kw_pool_step=lambda config: step("pool"), kw_timer_step=lambda config: step("timer")),
        health=plugin(kw_bootsteps=generator),
    )

    steps, owners = hooks.boot_steps(config)

    assert [found.name for found in steps] == ["pool", "timer", "health"]
    assert owners == {
        "pool": "kernel (kernel-kernel 1.0)",
        "timer": "kernel (kernel-kernel 1.0)",
        "health": "health (kernel-health 1.0)",
    }


def test_a_single_step_must_have_the_name_of_its_spec(config: Config) -> None:
    hooks = hooks_with(mine=plugin(kw_pool_step=lambda config: step("swimming")))

    with pytest.raises(PluginError) as refused:
        hooks.boot_steps(config)

    assert "the step that mine (kernel-mine 1.0) gives in kw_pool_step is named 'swimming'" in refused.value.message


def test_statistics_are_merged() -> None:
    hooks = hooks_with(
        a=plugin(kw_stats=lambda worker: {"a": 1, "both": "a"}), b=plugin(kw_stats=lambda worker: {"b": 2, "both": "b"})
    )

    assert hooks.kw_stats(None) == {"a": 1, "b": 2, "both": "b"}  # type: ignore[arg-type]


def test_calls_that_repeat_remember_nothing() -> None:
    hooks = hooks_with(a=plugin(kw_stats=lambda worker: {"a": 1}))

    for _ in range(3):
        hooks.kw_stats(None)  # type: ignore[arg-type]

    assert hooks.contributor({"a": 1}) == ""
    assert hooks._contributed == []


# --------------------------------------------------------------------------- errors


def test_an_exception_names_plugin_distribution_and_hook(config: Config) -> None:
    cause = ZeroDivisionError("division by zero")
    hooks = hooks_with(good=plugin(kw_bootsteps=lambda config: []), bad=plugin(kw_bootsteps=raising(cause)))

    with pytest.raises(PluginError) as failed:
        hooks.kw_bootsteps(config)

    assert failed.value.message == (
        "plugin bad (kernel-bad 1.0) failed in kw_bootsteps: ZeroDivisionError: division by zero"
    )
    assert failed.value.__cause__ is cause
    assert hooks.running is None


def test_a_generator_that_raises_is_named_too(config: Config) -> None:
    def generator(config: Config) -> Iterator[Bootstep]:
        yield step("one")
        raise ValueError("two")

    with pytest.raises(PluginError, match=r"plugin bad \(kernel-bad 1\.0\) failed in kw_bootsteps: ValueError: two"):
        hooks_with(bad=plugin(kw_bootsteps=generator)).kw_bootsteps(config)


def test_the_kernels_own_errors_pass_unchanged() -> None:
    refusal = ConfigError("port 0 is no port")

    def refuse(draft: Any) -> None:
        raise refusal

    with pytest.raises(ConfigError) as raised:
        hooks_with(health=plugin(kw_configure=refuse)).kw_configure(compose({}, environ={}))

    assert raised.value is refusal


def test_a_failing_wrapper_is_a_plugin_error(config: Config) -> None:
    def wrapper(config: Config) -> Iterator[None]:
        yield
        raise ValueError("wrapped badly")

    made = plugin()
    made.kw_bootsteps = hookimpl(wrapper=True)(wrapper)

    with pytest.raises(PluginError, match=r"a wrapper of kw_bootsteps failed: ValueError: wrapped badly"):
        hooks_with(odd=made).kw_bootsteps(config)


def test_the_running_hook_can_be_named_while_it_hangs(config: Config) -> None:
    seen = []

    def look(bus: Any, config: Any) -> None:
        seen.append(hooks.running)

    hooks = hooks_with(slow=plugin(kw_subscribe=look))
    hooks.kw_subscribe(Bus(), config)

    assert seen == [("kw_subscribe", "slow")]
    assert hooks.running is None


@pytest.mark.parametrize(
    ("api", "says"),
    [(None, "does not state kw_api"), (2, "was written for kw_api 2"), ("1", "was written for kw_api '1'")],
)
def test_a_plugin_of_another_api_is_refused(api: object, says: str) -> None:
    made = ModuleType("made")
    if api is not None:
        made.kw_api = api  # type: ignore[attr-defined]

    with pytest.raises(PluginError) as refused:
        hooks_with(old=made)

    assert f"plugin old (kernel-old 1.0) {says}" in refused.value.message


def test_a_misspelt_hook_is_refused_with_the_nearest() -> None:
    hooks = hooks_with(typo=plugin(kw_bootstep=lambda config: []))

    with pytest.raises(PluginError) as refused:
        hooks.check()

    assert "plugin typo (kernel-typo 1.0) implements kw_bootstep: there is no such hook" in refused.value.message
    assert "Did you mean 'kw_bootsteps'?" in refused.value.message


def test_an_argument_that_a_spec_does_not_have_is_refused() -> None:
    with pytest.raises(PluginError) as refused:
        hooks_with(typo=plugin(kw_bootsteps=lambda konfig: []))

    assert "plugin typo (kernel-typo 1.0)" in refused.value.message
    assert "konfig" in refused.value.message


def test_an_optional_hook_of_another_plugin_may_be_missing() -> None:
    made = plugin()
    made.kw_of_somebody = hookimpl(optionalhook=True)(lambda: 1)

    hooks_with(guest=made).check()


# --------------------------------------------------------------------------- specs of plugins


def test_a_plugin_adds_specs_for_others(tmp_path: Path) -> None:
    spec = pluggy.HookspecMarker("kw")

    def kw_weather(place: str) -> str:
        """Say what the weather is like."""
        raise NotImplementedError

    more = ModuleType("more")
    more.kw_weather = spec(kw_weather)  # type: ignore[attr-defined]
    hooks = hooks_with(
        sunny=plugin(kw_weather=lambda place: f"sunny in {place}"),
        weather=plugin(kw_add_hookspecs=lambda registry: registry.add_hookspecs(more)),
    )
    hooks.check()

    assert hooks.call("kw_weather", place="Aix") == ["sunny in Aix"]
