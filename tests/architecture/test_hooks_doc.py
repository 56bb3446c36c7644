"""docs/hooks.md says what the hook specs say."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from kernel_worker import hookspecs, hookspecs_executor
from scripts.hooks_doc import TARGET, render

SPECS = {
    name: (module, found)
    for module in (hookspecs, hookspecs_executor)
    for name, found in vars(module).items()
    if re.match("kwx?_", name)
}


def test_page_is_generated_from_the_specs() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(), "run: python scripts/hooks_doc.py"


@pytest.mark.parametrize("name", SPECS)
def test_every_spec_is_a_spec_with_a_contract_and_an_example(name: str) -> None:
    module, spec = SPECS[name]
    contract = inspect.getdoc(spec) or ""

    assert hasattr(spec, f"{module.PROJECT}_spec"), f"{name} is not marked as a spec"
    assert "Example::" in contract
    assert f"def {name}(" in contract


@pytest.mark.parametrize("name", SPECS)
def test_examples_take_the_arguments_of_their_spec(name: str) -> None:
    _, spec = SPECS[name]
    example = (inspect.getdoc(spec) or "").partition("Example::")[2]
    code: dict[str, Any] = {}

    exec(inspect.cleandoc(example), {"hookimpl": lambda function: function}, code)

    assert set(inspect.signature(code[name]).parameters) <= set(inspect.signature(spec).parameters)
