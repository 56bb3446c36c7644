"""Start a plugin from a template: `make new-plugin KIND=pool NAME=x [DEST=folder]`.

Without DEST it becomes a member of the workspace, plugins/<kind>_<name>, with its tests in tests/plugins; with DEST
a project of its own with its tests inside. What is made works as it is: it installs, and its contract test passes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "templates"
KINDS = sorted(path.name.removeprefix("plugin-") for path in TEMPLATES.glob("plugin-*"))


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


def copy(source: Path, target: Path, name: str, tests: str) -> None:
    """Copy a template's tree; NAME in a path is the plugin's name."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            made = target / str(path.relative_to(source)).replace("NAME", name)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(fill(path.read_text(), name, tests))


def stand_alone(pyproject: Path) -> None:
    """Take away what only a member of the workspace can say."""
    text = pyproject.read_text()
    pyproject.write_text(text.partition("\n[tool.uv.sources]")[0])


def main() -> None:
    """Command line; run by make, which passes empty texts for what was not given."""
    parser = argparse.ArgumentParser(prog="make new-plugin", usage=f"make new-plugin KIND={'|'.join(KINDS)} NAME=x")
    parser.add_argument("kind")
    parser.add_argument("name")
    parser.add_argument("--dest", type=Path)
    arguments = parser.parse_args()
    kind, name = arguments.kind, arguments.name
    if kind not in KINDS:
        parser.error(f"KIND={kind} is none of {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*", name):
        parser.error(
            f"NAME={name!r} must be a word of lower-case letters and digits: users type it, and URLs start with it"
        )
    outside = arguments.dest is not None
    target = arguments.dest.resolve() if outside else ROOT / "plugins" / f"{kind}_{name}"
    tests = target / "tests" if outside else ROOT / "tests" / "plugins" / f"{kind}_{name}"
    for folder in (target, tests):
        if folder.exists() and any(folder.iterdir()):
            sys.exit(f"{folder} exists already: choose another NAME or DEST")
    copy(TEMPLATES / f"plugin-{kind}", target, name, "tests" if outside else str(tests.relative_to(ROOT)))
    if outside:
        stand_alone(target / "pyproject.toml")
        print(f"made {target}\n    pip install -e {target}\n    kw plugins\n    pytest {tests}")
        return
    shutil.move(target / "tests", tests)
    print(f"made {target.relative_to(ROOT)} and {tests.relative_to(ROOT)}")
    print(f"    make setup\n    .venv/bin/kw plugins\n    make test ARGS={tests.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
