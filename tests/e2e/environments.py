"""Wheels of all members, and fresh environments outside the repository that hold some of them.

Members come from the wheels alone; third-party packages come from the package index, pinned by constraints.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


def clean_environ(**more: str) -> dict[str, str]:
    """The caller's environment without what would leak its Python or its settings into another one."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "KW_", "VIRTUAL_ENV"))}
    return {
        **kept,
        "PIP_CONSTRAINT": str(CONSTRAINTS),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_COMPILE": "0",  # does not compile: pip takes the value for that of "compile"
        **more,
    }


def run(command: list[str], cwd: Path) -> str:
    """Run to the end; the output.

    :raises AssertionError: exit code other than 0; the text is the output.
    """
    done = subprocess.run(
        command, cwd=cwd, env=clean_environ(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def members() -> dict[str, Path]:
    """Distribution name to folder."""
    folders = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")), ROOT]
    return {tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]: folder for folder in folders}


BUILD = """
import sys
from hatchling.builders.wheel import WheelBuilder
for folder in sys.argv[2:]:
    list(WheelBuilder(folder).build(directory=sys.argv[1]))
"""


def build_wheels(target: Path) -> None:
    """Build one wheel per member, in one process: to start hatchling costs more than to build a wheel."""
    run([sys.executable, "-c", BUILD, str(target), *map(str, members().values())], cwd=ROOT)


def requirements(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Members and third-party requirements that distributions of the workspace need, directly or not."""
    folders = members()
    ours: set[str] = set()
    theirs: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        ours.add(name)
        for line in tomllib.loads((folders[name] / "pyproject.toml").read_text())["project"]["dependencies"]:
            needed = next((member for member in folders if line.split(">")[0].strip() == member), None)
            if needed is None:
                theirs.add(line)
            elif needed not in ours:
                pending.append(needed)
    return ours, theirs


class Environment:
    """A virtual environment; `bin` holds its programs."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)], cwd=folder.parent)

    def install(self, *arguments: str) -> None:
        """Install with uv when it is there, else with the pip that runs these tests: none is needed inside."""
        python = str(self.bin / "python")
        if uv := shutil.which("uv"):
            command = [uv, "pip", "install", "--quiet", "--python", python]
        else:
            command = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
        run([*command, "--constraint", str(CONSTRAINTS), *arguments], cwd=self.bin)

    def install_members(self, wheels: Path, *names: str, beside: Iterable[str] = ()) -> None:
        """Install members from the wheels, and from nowhere else, after the third-party packages they need and others
        (each run of pip takes seconds)."""
        _, theirs = requirements(names)
        if theirs.union(beside):
            self.install(*sorted(theirs.union(beside)))
        self.install("--no-index", "--find-links", str(wheels), *names)
