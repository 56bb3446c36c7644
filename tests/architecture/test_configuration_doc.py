"""docs/configuration.md says what the code declares: settings of the kernel and of all members, and their defaults."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernel_app.settings import DEFAULTS
from kernel_worker.config import WORKER, Field, WorkerOptions, compose, fields_of
from kernel_worker.config_file import SettingsFile
from kernel_worker.options import NoOptions
from kernel_worker.registry import Registry, load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
HEAD = "| Setting | Command line | Environment | Application | Default | Meaning |\n|---|---|---|---|---|---|\n"
NOTHING = "–"


def code(text: str) -> str:
    return f"`{text}`" if text else NOTHING


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return code(str(value).lower())
    if value is None or value == () or value == {}:
        return NOTHING
    if isinstance(value, tuple):
        return code(", ".join(map(str, value)))
    return code(f"{value:g}") if isinstance(value, float) else code(str(value))


def row(field: Field) -> str:
    *short, last = field.spec.flags or ("",)
    metavar = "" if field.spec.is_flag or not last else f" {field.spec.metavar}"
    flags = ", ".join(code(flag) for flag in (*short, last + metavar))
    cells = [code(field.name), flags, code(field.env), code(field.spec.celery), shown(field.default), field.spec.help]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def table(section: str, options: type) -> str:
    return HEAD + "".join(row(field) for field in fields_of(section, options).values())


def own_distributions() -> set[str]:
    """Distributions of this repository: whatever else is installed has a page of its own."""
    projects = [ROOT / "core" / "pyproject.toml", *(ROOT / "plugins").glob("*/pyproject.toml")]
    return {tomllib.loads(project.read_text())["project"]["name"] for project in projects}


def declared_sections() -> dict[str, type]:
    """Options dataclass by section, of the kernel, the pools and the plugins; without those that have no options."""
    registry, own = Registry.discover(), own_distributions()
    found: dict[str, type] = {WORKER: WorkerOptions}
    for name, entry in registry.entries["pools"].items():
        if entry.distribution in own:
            found[name] = getattr(load(entry), "Options", NoOptions)
    for name, entry in registry.entries["plugins"].items():
        if entry.distribution in own and (declare := getattr(load(entry), "kw_options", None)):
            found[name] = declare()
    return {name: options for name, options in found.items() if fields_of(name, options)}


def part(heading: str) -> str:
    """The text under a heading, up to the next one."""
    _, found, rest = PAGE.partition(f"\n{heading}\n")
    assert found, f"docs/configuration.md has no heading {heading!r}"
    return re.split(r"\n#{1,6} ", rest)[0]


@functools.cache
def obeyed_settings() -> frozenset[str]:
    """Names of application settings that the code of some member reads."""
    return frozenset(
        name
        for source in (ROOT / "core" / "src", ROOT / "plugins")
        for file in source.rglob("*.py")
        if file != ROOT / "plugins/app_native/src/kernel_app/settings.py"
        for name in names_in(ast.parse(file.read_text()))
        if name in DEFAULTS
    )


def names_in(tree: ast.AST) -> Iterator[str]:
    """Words that may name a setting: texts, attributes of a `conf`, and `f"redis_{name}"` with the texts it may stand for."""
    nodes = list(ast.walk(tree))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    yield from texts
    for node in nodes:
        if isinstance(node, ast.Attribute) and "conf" in ast.unparse(node.value):
            yield node.attr
        elif isinstance(node, ast.JoinedStr) and isinstance(start := node.values[0], ast.Constant):
            yield from (str(start.value) + text for text in texts)


def test_page_has_the_table_of_each_section_that_is_declared() -> None:
    """On failure: the right side of the comparison is what the page has to say."""
    expected = {section: table(section, options).strip() for section, options in declared_sections().items()}
    headings = re.findall(r"^## Section `(.+)`$", PAGE, re.MULTILINE)

    found = {section: part(f"## Section `{section}`").strip().partition("\n\n")[0] for section in headings}

    assert found == expected


def test_example_file_is_accepted() -> None:
    example = re.search(r"```toml\n(.+?)```", PAGE, re.DOTALL)
    assert example is not None
    sections = {name: options for name, options in declared_sections().items() if name != WORKER}

    config = compose(sections, environ={}, file=SettingsFile("kw.toml", tomllib.loads(example[1]))).freeze()

    assert config.explicit(WORKER, "concurrency")


def test_application_settings_that_are_obeyed_are_described_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", part("### Obeyed"), re.MULTILINE)

    assert {name: default for name, default, _ in rows} == {
        name: shown(value) for name, value in DEFAULTS.items() if name in obeyed_settings()
    }


def test_application_settings_without_effect_are_listed() -> None:
    listed = re.findall(r"`(\w+)`", part("### Accepted, without effect"))

    assert sorted(listed) == sorted(DEFAULTS.keys() - obeyed_settings())
