"""Boot steps: their order, and that whatever one of them does, the others are taken down again."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

import pytest

from kernel_worker.errors import ConfigError, PluginError, StartError, StartInterrupted
from kernel_worker.steps import Bootstep, Sequence, order


class Step(Bootstep):
    """Writes down what is done to it."""

    def __init__(
        self, name: str, log: list[str] | None = None, *, requires: tuple[str, ...] = (), before: tuple[str, ...] = ()
    ):
        self.name = name
        self.requires = requires
        self.before = before
        self.log = log if log is not None else []
        self.errors: dict[str, Exception] = {}
        """What each method raises."""

    def _do(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if what in self.errors:
            raise self.errors[what]

    def start(self, ctx: Any) -> object:
        self._do("start")
        return f"api of {self.name}"

    def close(self, ctx: Any) -> None:
        self._do("close")

    def stop(self, ctx: Any, deadline: float) -> None:
        self._do("stop")

    def terminate(self, ctx: Any) -> None:
        self._do("terminate")


def _names(*steps: Step) -> list[str]:
    return [step.name for step in order(steps, {})]


def _sequence(*names: str) -> tuple[Sequence, dict[str, Step], list[str]]:
    log: list[str] = []
    steps = {name: Step(name, log) for name in names}
    owners = {name: f"{name}-plugin" for name in names}
    return Sequence(list(steps.values()), owners), steps, log


# -- order


def test_independent_steps_start_by_name() -> None:
    assert _names(Step("c"), Step("a"), Step("b")) == ["a", "b", "c"]


def test_a_step_starts_after_what_it_requires() -> None:
    assert _names(Step("a", requires=("c",)), Step("b"), Step("c", requires=("b",))) == ["b", "c", "a"]


def test_a_step_starts_before_those_it_names() -> None:
    assert _names(Step("a"), Step("z", before=("a", "not here"))) == ["z", "a"]


def test_the_order_does_not_depend_on_the_order_of_contribution() -> None:
    steps = [Step("a", requires=("m",)), Step("m"), Step("z", before=("m",)), Step("b"), Step("c", requires=("a", "b"))]

    assert _names(*steps) == _names(*reversed(steps)) == ["b", "z", "m", "a", "c"]


def test_a_circle_is_printed() -> None:
    steps = [Step("a", requires=("b",)), Step("b", requires=("c",)), Step("c", requires=("a",)), Step("d")]

    with pytest.raises(PluginError) as failure:
        order(steps, {})

    circle = failure.value.message.partition(": ")[2].split(" → ")
    assert circle[0] == circle[-1]
    assert set(circle) == {"a", "b", "c"}
    for step, required in itertools.pairwise(circle):
        assert required in {"a": "b", "b": "c", "c": "a"}[step], f"{step} does not require {required}"


def test_a_step_that_requires_itself_is_a_circle() -> None:
    with pytest.raises(PluginError, match="a → a"):
        order([Step("a", requires=("a",))], {})


def test_before_and_requires_together_can_make_a_circle() -> None:
    with pytest.raises(PluginError, match="circle"):
        order([Step("a", before=("b",)), Step("b", before=("a",))], {})


def test_a_missing_requirement_names_step_plugin_and_the_nearest_name() -> None:
    with pytest.raises(PluginError) as failure:
        order([Step("health", requires=("consumr",)), Step("consumer")], {"health": "health (kernel-health 0.1)"})

    assert "'health' of health (kernel-health 0.1) requires a step named 'consumr'" in failure.value.message
    assert "have: consumer, health" in failure.value.message
    assert failure.value.hint == "did you mean 'consumer'?"
    assert failure.value.exit_code == 78


def test_a_missing_requirement_without_a_nearest_name_says_what_to_do() -> None:
    with pytest.raises(PluginError) as failure:
        order([Step("health", requires=("xyzzy",))], {})

    assert failure.value.hint == "select the plugin that provides it"


def test_two_steps_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match="two boot steps are named 'a'"):
        order([Step("a"), Step("a")], {"a": "second"})


# -- start


def test_start_collects_what_steps_return() -> None:
    sequence, _, log = _sequence("a", "b")

    sequence.start(None)

    assert log == ["start a", "start b"]
    assert sequence.apis == {"a": "api of a", "b": "api of b"}
    assert sequence.current is None


def test_a_failing_start_is_rolled_back_in_reverse_itself_first() -> None:
    sequence, steps, log = _sequence("a", "b", "c", "d")
    steps["c"].errors["start"] = OSError("port 80 is taken")

    with pytest.raises(StartError) as failure:
        sequence.start(None)

    assert log == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    assert str(failure.value) == "boot step 'c' of c-plugin failed: OSError: port 80 is taken"
    assert (failure.value.step, failure.value.plugin, failure.value.exit_code) == ("c", "c-plugin", 70)
    assert isinstance(failure.value.__cause__, OSError)
    assert sequence.started == []
    assert sequence.current is None


def test_errors_of_the_roll_back_are_notes_and_do_not_end_it() -> None:
    sequence, steps, log = _sequence("a", "b")
    steps["b"].errors = {"start": ValueError("wrong"), "stop": RuntimeError("half a start")}
    steps["a"].errors["stop"] = KeyError("gone")

    with pytest.raises(StartError, match="wrong") as failure:
        sequence.start(None)

    assert log == ["start a", "start b", "stop b", "stop a"]
    assert failure.value.__notes__ == [
        "while rolling back step 'b': RuntimeError: half a start",
        "while rolling back step 'a': KeyError: 'gone'",
    ]


@pytest.mark.parametrize(
    "error", [ConfigError("x is wrong"), StartInterrupted("SIGTERM")], ids=["user's mistake", "signal"]
)
def test_an_error_with_an_exit_code_of_its_own_passes_unchanged(error: Exception) -> None:
    sequence, steps, log = _sequence("a", "b")
    steps["b"].errors["start"] = error

    with pytest.raises(type(error)) as failure:
        sequence.start(None)

    assert failure.value is error
    assert log[-2:] == ["stop b", "stop a"]


def test_a_start_error_keeps_its_hint_and_gains_step_and_plugin() -> None:
    sequence, steps, _ = _sequence("a")
    steps["a"].errors["start"] = StartError("no port", hint="use --port")

    with pytest.raises(StartError) as failure:
        sequence.start(None)

    assert failure.value.hint == "use --port"
    assert "'a' of a-plugin failed: no port" in failure.value.message


# -- stop


def test_steps_close_in_start_order_and_stop_in_reverse() -> None:
    sequence, _, log = _sequence("a", "b", "c")
    sequence.start(None)
    log.clear()

    sequence.close(None)
    clean = sequence.stop(None, time.monotonic() + 1)

    assert clean
    assert log == ["close a", "close b", "close c", "stop c", "stop b", "stop a"]


def test_a_step_that_fails_to_close_does_not_keep_others_from_closing(caplog: pytest.LogCaptureFixture) -> None:
    sequence, steps, log = _sequence("a", "b")
    sequence.start(None)
    steps["a"].errors["close"] = RuntimeError("stuck")

    with caplog.at_level(logging.ERROR):
        sequence.close(None)

    assert log[-1] == "close b"
    assert "step a failed to close" in caplog.text


def test_a_step_that_fails_to_stop_is_terminated_and_the_stop_is_not_clean(caplog: pytest.LogCaptureFixture) -> None:
    sequence, steps, log = _sequence("a", "b", "c")
    sequence.start(None)
    log.clear()
    steps["b"].errors = {"stop": RuntimeError("stuck"), "terminate": RuntimeError("stuck for good")}

    with caplog.at_level(logging.ERROR):
        clean = sequence.stop(None, time.monotonic() + 1)

    assert not clean
    assert log == ["stop c", "stop b", "terminate b", "stop a"]
    assert "step b failed to stop" in caplog.text
    assert "step b failed to terminate" in caplog.text


def test_a_second_stop_does_nothing() -> None:
    sequence, _, log = _sequence("a")
    sequence.start(None)
    sequence.stop(None, time.monotonic())
    log.clear()

    assert sequence.stop(None, time.monotonic())
    assert log == []
