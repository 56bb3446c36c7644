"""What the applications and clients read from their environment; `environment` sets it. Standard library only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # applications import this module, and their start is measured
    from pathlib import Path

QUEUE = "celery"
"""Default queue of both systems."""
TASK = "bench.noop"


def broker_url() -> str:
    """The broker of this run."""
    return os.environ["BENCH_BROKER"]


def results_url() -> str | None:
    """Where results go; None = they are ignored."""
    return os.environ.get("BENCH_RESULTS") or None


def work() -> str:
    """What the task does before it stamps: "" nothing, "nap", "async nap", "hash"."""
    return os.environ.get("BENCH_WORK", "")


def environment(broker: str, results: str, stamps: Path, work: str = "") -> dict[str, str]:
    """Environment of a worker or client process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BENCH_", "KW_"))}
    ours = {"BENCH_BROKER": broker, "BENCH_RESULTS": results, "BENCH_STAMPS": str(stamps), "BENCH_WORK": work}
    return {**kept, **ours}
