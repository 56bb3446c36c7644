"""What must not be in the tree: long sleeps in tests, paths of somebody's machine, oversized modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .source import ROOT

MAX_SLEEP_S = 0.05
SLOW_FOLDERS = ("e2e", "compat", "faults")  # they wait for real processes and real time
MAX_FILE_BYTES = 10_000_000


def tracked_files() -> list[Path]:
    """Files of the repository, also those not yet added, without what git ignores."""
    run = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if run.returncode != 0:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in run.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def unit_test_files() -> list[Path]:
    """Test modules and the contract suites, but for deliberately wrong drivers and folders that may be slow."""
    suites = ROOT / "core" / "src" / "kernel_worker" / "testing"
    tests = (path for path in (ROOT / "tests").rglob("*.py") if path.name.startswith(("test_", "conftest")))
    return sorted([*suites.glob("*.py"), *(path for path in tests if not set(SLOW_FOLDERS) & set(path.parts))])


def test_unit_tests_wait_for_conditions_and_do_not_sleep() -> None:
    """A longer sleep is there because time must pass, and says so in a comment on its line."""
    long = [f"{file.relative_to(ROOT)}:{line}" for file in unit_test_files() for line in _long_sleeps(file)]

    assert not long, "use kernel_worker.testing.eventually"


def _long_sleeps(file: Path) -> list[int]:
    text = file.read_text()
    lines = text.splitlines()
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.sleep", "sleep")
        and any(isinstance(each, ast.Constant) and each.value > MAX_SLEEP_S for each in node.args)
        and "#" not in lines[node.lineno - 1]
    ]


def test_no_file_names_a_path_of_this_machine() -> None:
    here = [str(ROOT), str(Path.home()) + "/", sys.prefix + "/"]
    own = [re.escape(path) for path in here if len(path) > 4]
    pattern = re.compile("|".join([*own, r"/(?:home|Users)/\w+/", r"\b[A-Z]:\\\\Users\\\\"]))

    named = []
    for file in tracked_files():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue  # a binary file
        named += [f"{file.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]

    # this file spells the pattern itself
    assert [each for each in named if "test_hygiene.py" not in each] == []


def test_no_file_is_a_download_or_a_database() -> None:
    strange = [
        str(file.relative_to(ROOT))
        for file in tracked_files()
        if file.stat().st_size > MAX_FILE_BYTES or file.suffix in (".db", ".pyc", ".whl", ".so", ".rdb", ".lock")
    ]

    assert strange == []
