"""`kw plugins new KIND NAME`: start a plugin from a template. What is made installs as it is, and its tests pass."""

from __future__ import annotations

import re
from pathlib import Path

import click

from kernel_worker.errors import UsageError

_IN_WHEEL = Path(__file__).parent / "templates"
_IN_REPOSITORY = Path(__file__).parents[4] / "templates"  # installed in place, for development

NAME_RULE = "must be a word of lower-case letters and digits: users type it, and URLs start with it"


def templates() -> Path:
    """The folder of templates, `plugin-<kind>` each."""
    return _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_REPOSITORY


def kinds() -> list[str]:
    """What can be made."""
    return sorted(path.name.removeprefix("plugin-") for path in templates().glob("plugin-*"))


def is_name(text: str) -> bool:
    """Whether a plugin may have this name; see `NAME_RULE`."""
    return re.fullmatch(r"[a-z][a-z0-9]*", text) is not None


def fill(text: str, name: str, tests: str) -> str:
    """Replace the placeholders of a template's text."""
    for placeholder, value in (
        ("@name@", name),
        ("@Name@", name.capitalize()),
        ("@NAME@", name.upper()),
        ("@tests@", tests),
    ):
        text = text.replace(placeholder, value)
    return text


def copy(kind: str, target: Path, name: str, tests: str) -> None:
    """Copy a template's tree; NAME in a path is the plugin's name.

    :param tests: where the tests will lie, as the plugin's read me says it.
    """
    source = templates() / f"plugin-{kind}"
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            made = target / str(path.relative_to(source)).replace("NAME", name)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(fill(path.read_text(), name, tests))


def stand_alone(pyproject: Path) -> None:
    """Take away what only a member of this project's workspace can say."""
    text = pyproject.read_text()
    pyproject.write_text(text.partition("\n[tool.uv.sources]")[0])


@click.command("new")
@click.argument("kind", metavar="KIND")
@click.argument("name", metavar="NAME")
@click.option("--dest", type=click.Path(path_type=Path), metavar="DIR", help="Where [./kernel-KIND-NAME].")
def new_plugin(kind: str, name: str, dest: Path | None) -> int:
    """Start a plugin of your own: a project with its code, its entry point and its tests.

    KIND is broker, control, plugin, pool or result; NAME is what users will type.
    """
    if kind not in kinds():
        raise UsageError(f"no kind of plugin is called {kind!r} (there are: {', '.join(kinds())})")
    if not is_name(name):
        raise UsageError(f"{name!r} {NAME_RULE}")
    target = dest or Path(f"kernel-{kind}-{name}")
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} exists already", hint="choose another name, or --dest")
    copy(kind, target, name, "tests")
    stand_alone(target / "pyproject.toml")
    click.echo(f"made {target}\n    pip install -e {target}\n    kw plugins\n    pytest {target}/tests")
    return 0
