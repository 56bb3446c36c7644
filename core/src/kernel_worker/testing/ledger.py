"""What really ran: an append-only file that tasks write and tests read. Standard library only.

Outside of the system under test, so that no crash can change it: one `write` per entry to a file opened with
O_APPEND is atomic for entries of a line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Ledger:
    """Entries of tasks, in the order they were written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def note(self, event: str, **fields: Any) -> None:
        """Append one entry; adds process id and time. Any process."""
        entry = {"event": event, "pid": os.getpid(), "at": time.time(), **fields}
        # opened each time: a task may have closed descriptors that are not its own
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)

    def entries(self, event: str = "", **fields: Any) -> list[Mapping[str, Any]]:
        """Entries of one event ("" = all) whose fields have these values."""
        if not self.path.exists():
            return []
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        wanted = fields | ({"event": event} if event else {})
        return [entry for entry in found if all(entry.get(name) == value for name, value in wanted.items())]

    def count(self, event: str = "", **fields: Any) -> int:
        """How many such entries there are."""
        return len(self.entries(event, **fields))
