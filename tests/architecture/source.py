"""What the architecture tests read: the tree, members, modules, imports and code lines."""

from __future__ import annotations

import ast
import io
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "src" / "kernel_worker"


@dataclass(frozen=True)
class Member:
    """One distribution of the workspace."""

    folder: Path
    project: dict[str, Any]

    @property
    def source(self) -> Path | None:
        """Its import package; None for a member that is metadata only."""
        packages = list((self.folder / "src").glob("*/__init__.py"))
        return packages[0].parent if packages else None


def members() -> list[Member]:
    """All distributions below the root."""
    folders = [ROOT / "core", *sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))]
    return [Member(folder, tomllib.loads((folder / "pyproject.toml").read_text())) for folder in folders]


@dataclass(frozen=True)
class Import:
    """One imported module, absolute; `names` are what is taken from it (empty for a plain import)."""

    module: str
    names: tuple[str, ...]
    line: int

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports(file: Path, package: str) -> list[Import]:
    """What a module imports when it runs, wherever in it; imports for type checkers are left out.

    :param package: dotted name of the package the file is in, to resolve relative imports.
    """
    return list(_imports(ast.parse(file.read_text()), package))


def _imports(node: ast.AST, package: str) -> Iterator[Import]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for each in node.orelse:
            yield from _imports(each, package)
        return
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, (), node.lineno)
    elif isinstance(node, ast.ImportFrom):
        base = package.rsplit(".", node.level - 1)[0] if node.level else ""
        module = ".".join(part for part in (base, node.module or "") if part)
        yield Import(module, tuple(alias.name for alias in node.names), node.lineno)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package)


def package_of(file: Path, source: Path) -> str:
    """Dotted name of the package a file is in; `source` is the folder of the top package."""
    return ".".join([source.name, *file.parent.relative_to(source).parts])


def code_lines(file: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    text = file.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)
