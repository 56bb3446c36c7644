"""Write the tables of docs/pools.md from what the pools of this repository declare: `python scripts/pools_doc.py`.

With `--check` it only says whether the page is what it would write.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernel_worker import PoolCapability
from kernel_worker.drivers import Pool
from kernel_worker.registry import Registry, load

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pools.md"
BEGIN, END = "<!-- capabilities: made by scripts/pools_doc.py -->\n", "<!-- end of capabilities -->\n"
ORDER = ("prefork", "solo", "threads", "gevent", "eventlet", "asyncio")
MEANING = {
    PoolCapability.SOFT_LIMIT: "soft time limit: `SoftTimeLimitExceeded` inside the task",
    PoolCapability.HARD_LIMIT: "hard time limit: ends a task that ignores everything else",
    PoolCapability.CANCEL: "terminate one running task",
    PoolCapability.SEVERAL_SLOTS: "several tasks at once: `-c`, grow, shrink, `--autoscale`",
    PoolCapability.REPLACE: "`--max-tasks-per-child`, `--max-memory-per-child`",
}


def pools() -> list[type[Pool]]:
    """The pools of this repository, in the order of the page."""
    entries = Registry.discover().entries["pools"]
    return [load(entries[name]) for name in ORDER]


def table(drivers: list[type[Pool]]) -> str:
    """Who can do what."""
    lines = ["| | " + " | ".join(f"`{driver.name}`" for driver in drivers) + " |", "|---" * (len(drivers) + 1) + "|"]
    for capability, meaning in MEANING.items():
        cells = ["yes" if capability in driver.capabilities else "refused at start" for driver in drivers]
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its table as it has to be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(pools())}\n{END}{after}"


if __name__ == "__main__":
    now = PAGE.read_text()
    wanted = page(now)
    if "--check" in sys.argv:
        sys.exit(0 if now == wanted else "docs/pools.md is not what the pools declare: run scripts/pools_doc.py")
    PAGE.write_text(wanted)
