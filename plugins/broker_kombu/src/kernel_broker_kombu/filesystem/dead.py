"""Dead letters: the message's file as it came, and beside it a JSON file that says why.

.kw/dead/<queue>/<id>.msg     `<id>` begins with the time of death, so names are in order
.kw/dead/<queue>/<id>.json    {"reason": …, "attempts": …, "died_at": …}; written first
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel_worker.types import DeadLetter

from .folders import Folders, move, names_in, write_file
from .names import SUFFIX, Name, new_name

WHY = ".json"


def bury(folders: Folders, path: str, name: Name, reason: str, *, count: bool) -> bool:
    """Move a held message to the dead letters of its queue; False when it is gone."""
    if not os.path.exists(path):  # settled before: what was written then must stay
        return False
    folder = folders.dead(name.queue)
    os.makedirs(folder, exist_ok=True)
    died_at = time.time_ns()
    letter = os.path.join(folder, f"{died_at:020d}-{secrets.token_hex(4)}")
    why = {"reason": reason, "attempts": name.returned(count=count).attempts, "died_at": died_at / 1e9}
    write_file(letter + WHY, json.dumps(why).encode())
    if move(path, letter + SUFFIX):
        return True
    os.unlink(letter + WHY)
    return False


def ids(folders: Folders, queue: str) -> list[str]:
    """Ids of all dead letters of a queue, oldest first."""
    names = (name for name in names_in(folders.dead(queue)) if name.endswith(SUFFIX))
    return sorted(name.removesuffix(SUFFIX) for name in names)


def read(folders: Folders, queue: str, id: str) -> DeadLetter | None:
    """One dead letter, or None."""
    path = _path(folders, queue, id)
    try:
        raw = Path(path + SUFFIX).read_bytes()
    except FileNotFoundError:
        return None
    why = _why(path)
    return DeadLetter(
        id,
        queue,
        raw,
        str(why.get("reason", "")),
        float(why.get("died_at", 0.0)),
        int(why.get("attempts", 0)),
    )


def replay(folders: Folders, queue: str, chosen: Sequence[str] | None) -> int:
    """Put dead letters back at the end of their queue; how many."""
    count = 0
    for path in _chosen(folders, queue, chosen):
        count += move(path + SUFFIX, os.path.join(folders.incoming, new_name(queue)))
        Path(path + WHY).unlink(missing_ok=True)
    return count


def drop(folders: Folders, queue: str, chosen: Sequence[str] | None) -> int:
    """Delete dead letters; how many."""
    count = 0
    for path in _chosen(folders, queue, chosen):
        try:
            os.unlink(path + SUFFIX)
            count += 1
        except FileNotFoundError:
            pass  # another was faster
        Path(path + WHY).unlink(missing_ok=True)
    return count


def _chosen(folders: Folders, queue: str, chosen: Sequence[str] | None) -> list[str]:
    wanted = ids(folders, queue) if chosen is None else chosen
    return [_path(folders, queue, id) for id in dict.fromkeys(wanted)]


def _path(folders: Folders, queue: str, id: str) -> str:
    # An id comes from a command line: it must not lead out of the folder.
    return os.path.join(folders.dead(queue), id.replace("/", "_").replace("\0", "_"))


def _why(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path + WHY).read_bytes())
    except (OSError, ValueError):  # deleted by hand: the message itself counts
        return {}
    return found if isinstance(found, dict) else {}
