"""Messages that wait for their time: a folder per minute, so that a million of them cost nothing to look at."""

from __future__ import annotations

import math
import os
import time

from .folders import Folders, move, names_in
from .names import Name, parse

BUCKET_S = 60
LATEST = 1e11
"""Unix time (the year 5138) that stands for every later one."""


def place(folders: Folders, name: Name, until: float) -> str:
    """Path of a message that is parked until that unix time."""
    until = min(max(until, 0.0), LATEST) if not math.isnan(until) else 0.0
    return os.path.join(folders.parked, str(int(until // BUCKET_S)), f"{math.ceil(until * 1000)}~{name}")


def release_due(folders: Folders) -> int:
    """Let the messages wait whose time has come; how many."""
    now, count = time.time(), 0
    for bucket in names_in(folders.parked):
        if not bucket.isdigit() or int(bucket) * BUCKET_S > now:
            continue
        folder = os.path.join(folders.parked, bucket)
        for parked in names_in(folder):
            due, _, name = parked.partition("~")
            if due.isdigit() and int(due) <= now * 1000 and parse(name):
                count += move(os.path.join(folder, parked), os.path.join(folders.incoming, name))
        if (int(bucket) + 1) * BUCKET_S < now:
            try:
                os.rmdir(folder)
            except OSError:
                pass  # not empty: somebody parked into the past
    return count


def parked(folders: Folders, queue: str) -> list[str]:
    """Paths of the parked messages of a queue."""
    found = []
    for bucket in names_in(folders.parked):
        folder = os.path.join(folders.parked, bucket)
        for entry in names_in(folder):
            name = parse(entry.partition("~")[2])
            if name is not None and name.queue == queue:
                found.append(os.path.join(folder, entry))
    return found
