"""`make new-plugin`: what it makes is complete, clean, and passes its tests from the first moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.environments import ROOT, clean_environ, run

# Broker and pool suites take half a minute each: a part of them shows that the plugin is wired up.
PARTS = {"broker": "order or verdict or envelope or lease", "control": "", "plugin": "", "pool": "spare", "result": ""}


def make(kind: str, name: str, target: Path) -> subprocess.CompletedProcess[str]:
    """Run the script behind `make new-plugin … DEST=target`."""
    command = [sys.executable, str(ROOT / "scripts/new_plugin.py"), kind, name, "--dest", str(target)]
    return subprocess.run(command, env=clean_environ(), capture_output=True, text=True)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", PARTS)
def test_new_plugin_is_clean_and_passes_its_tests(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "made"

    made = make(kind, "lamp", target)

    assert made.returncode == 0, made.stderr
    texts = [path.read_text() for path in target.rglob("*") if path.is_file()]
    assert not [text for text in texts if "@name@" in text.lower() or "@tests@" in text]
    config = str(ROOT / "pyproject.toml")
    run([sys.executable, "-m", "ruff", "check", "--no-cache", "--config", config, "."], cwd=target)
    run([sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "--config", config, "."], cwd=target)
    # Not installed: its package is found by the path, as its entry points are not needed here.
    tests = ["-W", "error", "-p", "no:cacheprovider", "-o", "pythonpath=src", "-q", "tests", "-k", PARTS[kind]]
    run([sys.executable, "-m", "pytest", "-c", "pyproject.toml", *tests], cwd=target)


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")

    made = make("pool", "lamp", tmp_path)

    assert made.returncode == 1
    assert "exists already" in made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("kind", "name", "word"), [("pol", "lamp", "pool"), ("pool", "La-mp", "lower-case")], ids=["kind", "name"]
)
def test_impossible_request_is_a_usage_error(kind: str, name: str, word: str, tmp_path: Path) -> None:
    made = make(kind, name, tmp_path / "made")

    assert made.returncode == 2
    assert word in made.stderr
    assert not (tmp_path / "made").exists()
