"""Write docs/hooks.md from the hook specs: `python scripts/hooks_doc.py`. A test holds the two equal."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from kernel_worker import hookspecs, hookspecs_executor

TARGET = Path(__file__).parent.parent / "docs" / "hooks.md"
ROOMS = ((hookspecs, "In the kernel process"), (hookspecs_executor, "In the executor process"))

HEAD = """\
# Hooks

Generated from `kernel_worker.hookspecs` and `kernel_worker.hookspecs_executor` by `python scripts/hooks_doc.py`; the docstrings
there are the contract. How to write a plugin: [writing-a-plugin.md](writing-a-plugin.md).

A hook implementation names the arguments it wants, in any order, and may leave out those it does not need; arguments are
added at the end of a spec, so it goes on working. Plugins are asked in the order of their names, the kernel's own steps last.
"""


def render() -> str:
    """The whole page."""
    return HEAD + "".join(part for module, title in ROOMS for part in _room(module, title))


def _room(module: ModuleType, title: str) -> Iterator[str]:
    specs = [found for name, found in vars(module).items() if re.match("kwx?_", name)]
    about = inspect.getdoc(module) or ""
    yield f"\n## {title}\n\n{_markdown(about)}\n\n"
    yield "| Hook | Arguments | Answers |\n|---|---|---|\n"
    for spec in specs:
        arguments = ", ".join(f"`{name}`" for name in inspect.signature(spec).parameters) or "–"
        yield f"| [`{spec.__name__}`](#{spec.__name__}) | {arguments} | {_answers(module, spec)} |\n"
    for spec in specs:
        yield f"\n### {spec.__name__}\n\n```python\n{_signature(spec)}\n```\n\n{_markdown(inspect.getdoc(spec) or '')}\n"


def _answers(module: ModuleType, spec: Any) -> str:
    options = getattr(spec, f"{module.PROJECT}_spec")
    if options["historic"]:
        return "told to plugins registered later, too"
    if inspect.signature(spec).return_annotation in ("None", None):
        return "none: a notice"
    return "the first that is not None" if options["firstresult"] else "all of them"


def _signature(spec: Any) -> str:
    arguments = ", ".join(str(parameter).replace("'", "") for parameter in inspect.signature(spec).parameters.values())
    return f"def {spec.__name__}({arguments}) -> {inspect.signature(spec).return_annotation}"


def _markdown(docstring: str) -> str:
    """Field lists as bullets, `Example::` blocks as fenced code."""
    text = re.sub(r"(?m)^:param (\w+): ", r"- `\1`: ", docstring)
    text = re.sub(r"(?m)^:return: ", "- returns ", text)
    text = re.sub(r"(?m)^:raises (\w+): ", r"- raises `\1`: ", text)
    head, mark, example = text.partition("Example::\n")
    if not mark:
        return text.rstrip()
    return f"{head.rstrip()}\n\n```python\n{inspect.cleandoc(example)}\n```"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(render(), encoding="utf-8")
    print(f"{TARGET.name}: written")
