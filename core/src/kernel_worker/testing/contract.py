"""What all contract suites share: no test may be dropped quietly, capabilities decide what is asked.

A suite is a class that derives from `Contract`; a plugin's test class derives from the suite. Defining
a class that overrides or blanks a contract test without saying why is a TypeError, so the test module
cannot even be collected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar, TypeVar

import pytest

F = TypeVar("F", bound=Callable[..., Any])
_NEEDS = "kernel_worker_needs"


def requires(*capabilities: Enum) -> Callable[[F], F]:
    """Mark a contract test as asked only of drivers that declare all of `capabilities`."""

    def mark(test: F) -> F:
        setattr(test, _NEEDS, frozenset(capabilities))
        return test

    return mark


class Contract:
    """Base of the suites.

    :cvar deviations: contract test to the reason why this driver cannot pass it. A test named here is
        skipped with that reason, or replaced by the subclass's own version if it defines one.
    """

    deviations: ClassVar[Mapping[str, str]] = {}
    _contract_tests: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, *, suite: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited: dict[str, Any] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited |= vars(base).get("_contract_tests", {})
        if suite:
            own = {name: value for name, value in vars(cls).items() if name.startswith("test")}
            cls._contract_tests = inherited | own
            return
        cls._contract_tests = inherited
        problem = _dropped(cls, inherited)
        if problem:
            raise TypeError(f"{cls.__qualname__}: {problem}")

    @pytest.fixture(autouse=True)
    def _ask_only_what_is_declared(self, request: pytest.FixtureRequest) -> None:
        name = request.function.__name__
        if name in self.deviations and getattr(type(self), name) is self._contract_tests.get(name):
            pytest.skip(f"deviation: {self.deviations[name]}")
        needs: frozenset[Enum] = getattr(request.function, _NEEDS, frozenset())
        if needs:
            missing = needs - frozenset(self.declared_capabilities(request))
            if missing:
                pytest.skip("not declared: " + ", ".join(sorted(str(each.value) for each in missing)))

    def declared_capabilities(self, request: pytest.FixtureRequest) -> frozenset[Any]:
        """The capabilities of the driver under test."""
        raise NotImplementedError


def _dropped(cls: type[Contract], tests: Mapping[str, Any]) -> str:
    """What is wrong with the class's deviations and overrides; "" if nothing is."""
    for name, reason in cls.deviations.items():
        if name not in tests:
            return f"deviations name {name!r}, which is no test of the contract"
        if not reason.strip():
            return f"deviations give no reason for {name!r}"
    for name, test in tests.items():
        if name not in cls.deviations and getattr(cls, name, None) is not test:
            return f"overrides or drops the contract's {name!r}; say why in deviations = {{{name!r}: 'reason'}}"
    if vars(cls).get("__test__") is False or any(vars(base).get("__test__") is False for base in cls.__mro__[:-1]):
        return "__test__ = False drops the whole contract"
    return ""
