"""The application: one task that reads one text file. `kw run -A examples.textindex.app` runs it."""

from __future__ import annotations

import hashlib
import keyword
import re
from collections import Counter
from pathlib import Path
from typing import TypedDict

from kernel_app import App

MAX_BYTES = 16 * 1024 * 1024
"""Larger files are refused: an index of text has no use for them."""
IDENTIFIERS_KEPT = 50
"""Most common identifiers reported per file; the totals are added up from these."""

app = App("textindex")

_identifier = re.compile(r"[^\W\d]\w+")
_boring = frozenset([*keyword.kwlist, "self", "the", "and", "of", "to"])


class FileIndex(TypedDict):
    """What is known of one file."""

    size: int  # bytes
    lines: int
    words: int
    sha256: str
    identifiers: list[tuple[str, int]]  # most common first


@app.task(name="textindex.index_file")
def index_file(path: str) -> FileIndex:
    """Read one file and count what is in it.

    :raises OSError: it cannot be read.
    :raises ValueError: it is larger than `MAX_BYTES`, or not text.
    """
    file = Path(path)
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes are more than {MAX_BYTES:,}")
    content = file.read_bytes()
    if b"\0" in content[:8192]:
        raise ValueError(f"{path}: not a text file")
    text = content.decode("utf-8", errors="replace")
    names = Counter(_identifier.findall(text))
    for name in _boring:
        names.pop(name, None)
    return {
        "size": len(content),
        "lines": text.count("\n") + (not text.endswith("\n") and text != ""),
        "words": len(text.split()),
        "sha256": hashlib.sha256(content).hexdigest(),
        "identifiers": names.most_common(IDENTIFIERS_KEPT),
    }
