"""Start a plugin from a template: `make new-plugin KIND=pool NAME=x [DEST=folder]`.

Without DEST it becomes a member of the workspace, plugins/<kind>_<name>, with its tests in tests/plugins; with DEST
a project of its own with its tests inside. What is made works as it is: it installs, and its contract test passes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "core" / "src"))  # a checkout that was not set up yet can make one, too

from kernel_worker.cli.new_plugin import NAME_RULE, copy, is_name, kinds, stand_alone  # noqa: E402

KINDS = kinds()


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
    if not is_name(name):
        parser.error(f"NAME={name!r} {NAME_RULE}")
    outside = arguments.dest is not None
    target = arguments.dest.resolve() if outside else ROOT / "plugins" / f"{kind}_{name}"
    tests = target / "tests" if outside else ROOT / "tests" / "plugins" / f"{kind}_{name}"
    for folder in (target, tests):
        if folder.exists() and any(folder.iterdir()):
            sys.exit(f"{folder} exists already: choose another NAME or DEST")
    copy(kind, target, name, "tests" if outside else str(tests.relative_to(ROOT)))
    if outside:
        stand_alone(target / "pyproject.toml")
        print(f"made {target}\n    pip install -e {target}\n    kw plugins\n    pytest {tests}")
        return
    shutil.move(target / "tests", tests)
    print(f"made {target.relative_to(ROOT)} and {tests.relative_to(ROOT)}")
    print(f"    make setup\n    .venv/bin/kw plugins\n    make test ARGS={tests.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
