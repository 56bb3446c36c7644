"""Find the text files of a directory tree."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = frozenset(
    ".c .cc .cfg .conf .cpp .css .csv .go .h .hpp .html .ini .java .js .json .md .py .pyi .rb .rs .rst .sh .sql .tex "
    ".toml .ts .txt .xml .yaml .yml".split()
)
SKIPPED = frozenset(["__pycache__", "site-packages", "dist-packages", "node_modules"])
"""Folders that hold other people's files; hidden ones are skipped as well."""


def standard_library() -> Path:
    """Where this Python keeps the sources of its standard library: some thousand real text files."""
    return Path(sysconfig.get_path("stdlib"))


def text_files(folder: Path) -> Iterator[Path]:
    """Files below `folder` whose suffix says text, in a stable order. Links to folders are not followed."""
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path
