"""The lists of public names: sorted, complete, and all there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from .source import members

PACKAGES = [member.source for member in members() if member.source is not None]
LAZY = ["kernel_worker", "kernel_worker.testing"]


def names_for_type_checkers(file: Path) -> set[str]:
    """Names that the `if TYPE_CHECKING` block of a package imports from its modules."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                if isinstance(each, ast.ImportFrom) and each.level:
                    found.update(alias.asname or alias.name for alias in each.names)
    return found


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names_are_those_that_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None

    assert set(module.__all__) - {"__version__"} == names_for_type_checkers(Path(module.__file__))


@pytest.mark.parametrize("package", LAZY)
def test_every_lazy_name_can_be_imported(package: str) -> None:
    module = importlib.import_module(package)

    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize("source", PACKAGES, ids=lambda source: source.name)
def test_list_of_public_names_is_sorted_and_true(source: Path) -> None:
    module = importlib.import_module(source.name)
    names = list(getattr(module, "__all__", []))

    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []
