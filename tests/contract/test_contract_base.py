"""What every contract suite does with subclasses and capabilities, and how tests wait."""

from __future__ import annotations

import re
import time
from enum import Enum
from pathlib import Path

import pytest

from kernel_worker.testing import Contract, eventually, requires

from .proving import run_pytest


class Ability(Enum):
    """Of the driver in these tests."""

    FLY = "fly"
    SWIM = "swim"


class BirdContract(Contract, suite=True):
    """A suite of two tests."""

    def test_sings(self) -> None:
        assert True

    @requires(Ability.FLY)
    def test_flies(self) -> None:
        assert True


def test_subclass_that_overrides_a_contract_test_is_an_error() -> None:
    with pytest.raises(TypeError, match="'test_sings'"):

        class Mute(BirdContract):
            def test_sings(self) -> None:
                pass


def test_subclass_that_drops_a_contract_test_is_an_error() -> None:
    with pytest.raises(TypeError, match="'test_sings'"):

        class Mute(BirdContract):
            test_sings = None  # type: ignore[assignment]


def test_mixin_that_hides_a_contract_test_is_an_error() -> None:
    class Quiet:
        def test_sings(self) -> None:
            pass

    with pytest.raises(TypeError, match="'test_sings'"):

        class Mute(Quiet, BirdContract):  # type: ignore[misc]
            pass


def test_subclass_of_a_subclass_may_not_drop_either() -> None:
    class Robin(BirdContract):
        pass

    with pytest.raises(TypeError, match="'test_flies'"):

        class Stuffed(Robin):
            test_flies = None  # type: ignore[assignment]


def test_subclass_that_is_no_test_at_all_is_an_error() -> None:
    with pytest.raises(TypeError, match="__test__"):

        class Hidden(BirdContract):
            __test__ = False


def test_deviation_needs_a_reason() -> None:
    with pytest.raises(TypeError, match="no reason for 'test_sings'"):

        class Mute(BirdContract):
            deviations = {"test_sings": " "}


def test_deviation_from_nothing_is_an_error() -> None:
    with pytest.raises(TypeError, match="'test_barks'"):

        class Dog(BirdContract):
            deviations = {"test_barks": "it is no dog"}


def test_override_with_a_reason_is_accepted() -> None:
    class Crow(BirdContract):
        deviations = {"test_sings": "it caws"}

        def test_sings(self) -> None:
            assert True

    assert Crow.deviations


MODULE = """
from kernel_worker.testing import Contract
from tests.contract.test_contract_base import Ability, BirdContract

class Bird(BirdContract):
    abilities = frozenset()

    def declared_capabilities(self, request):
        return self.abilities

class TestEagle(Bird):
    abilities = frozenset({Ability.FLY})

class TestPenguin(Bird):
    abilities = frozenset({Ability.SWIM})

class TestSwan(Bird):
    deviations = {"test_sings": "swans are mute", "test_flies": "too heavy"}

    def test_flies(self):
        assert not self.abilities

class TestOstrich(Bird):
    deviations = {"test_flies": "too heavy"}
"""


def test_deviations_and_missing_capabilities_are_skipped_and_say_why(tmp_path: Path) -> None:
    file = tmp_path / "test_birds.py"
    file.write_text(MODULE)

    output = run_pytest([str(file)], tmp_path, "-v")

    ended = dict(re.findall(r"::Test(\w+::\w+) (PASSED|SKIPPED)", output))
    assert ended == {
        "Eagle::test_sings": "PASSED",
        "Eagle::test_flies": "PASSED",
        "Penguin::test_sings": "PASSED",
        "Penguin::test_flies": "SKIPPED",
        "Swan::test_sings": "SKIPPED",
        "Swan::test_flies": "PASSED",
        "Ostrich::test_sings": "PASSED",
        "Ostrich::test_flies": "SKIPPED",
    }
    assert "not declared: fly" in output
    assert "deviation: swans are mute" in output


def test_eventually_returns_what_the_condition_gave() -> None:
    values = iter([0, "", None, "there"])

    assert eventually(lambda: next(values)) == "there"


def test_eventually_fails_in_time_and_says_what_it_waited_for() -> None:
    counted: list[int] = []
    began = time.monotonic()

    with pytest.raises(AssertionError, match=r"not within 0.1 s: the moon, asked \d+ times"):
        eventually(lambda: counted.append(1), within_s=0.1, message=lambda: f"the moon, asked {len(counted)} times")

    assert 0.1 <= time.monotonic() - began < 1.0


def test_eventually_keeps_the_error_of_the_last_call() -> None:
    def absent() -> bool:
        raise FileNotFoundError("not yet")

    with pytest.raises(AssertionError) as caught:
        eventually(absent, within_s=0.05)

    assert isinstance(caught.value.__cause__, FileNotFoundError)
