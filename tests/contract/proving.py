"""Run contract suites against wrong drivers, in a pytest of its own, and say which tests failed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS_AT_ONCE = 6  # a wrong driver mostly makes its test wait


@dataclass(frozen=True)
class Proof:
    """What a run of pytest said: names of the failed tests by mutant."""

    failed: Mapping[str, set[str]]
    output: str


def prove(module: str, expected: Mapping[str, str], folder: Path, *, at_once: int = RUNS_AT_ONCE) -> Proof:
    """Run, for each mutant, the test of class `Test<mutant>` that is expected to fail.

    Only failures count: a test that breaks in its set-up or at collection proves nothing.

    :param module: text of a test module.
    :param expected: mutant to test name; "" runs the mutant's whole suite.
    :param at_once: so many runs share the tests.
    """
    file = folder / "test_mutants.py"
    file.write_text(module)
    chosen = [f"{file}::Test{mutant}" + (f"::{test}" if test else "") for mutant, test in expected.items()]
    with ThreadPoolExecutor(at_once) as pool:
        outputs = list(pool.map(lambda share: run_pytest(share, folder), (chosen[n::at_once] for n in range(at_once))))
    output = "\n".join(outputs)
    failed: dict[str, set[str]] = defaultdict(set)
    for mutant, test in re.findall(r"^FAILED .*::Test(\w+)::(\w+)", output, re.MULTILINE):
        failed[mutant].add(test)
    return Proof(failed, output)


def run_pytest(chosen: Sequence[str], folder: Path, *options: str) -> str:
    """Run pytest on these files or node ids, apart from this repository's configuration; its output."""
    isolated = ["-c", "/dev/null", "-o", f"pythonpath={ROOT}", "--rootdir", str(folder), "-p", "no:cacheprovider"]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *isolated,
            "--timeout",
            "60",
            *(options or ("-q",)),
            "-rfs",
            "--tb=line",
            *chosen,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
    )
    return run.stdout + run.stderr
