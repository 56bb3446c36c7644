"""What can go wrong with the file, in words for people. Imports nothing of the kernel.

ConnectionError
├── FileUnavailable      not now: locked, disk full, not writable
└── FileRefused          not as it is: no database, damaged, written by a newer version
"""

from __future__ import annotations

import os
import sqlite3


class FileUnavailable(ConnectionError):
    """The file cannot be used now; trying again later may help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}: {hint}" if hint else message)
        self.message = message
        self.hint = hint


class FileRefused(FileUnavailable):
    """The file cannot be used as it is; somebody has to look at it."""


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 when the error is not SQLite's own."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_of_the_file(error: sqlite3.Error) -> bool:
    """Whether SQLite itself refused, and not Python's module the way it was called."""
    return code_of(error) != 0


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection is in the way, so that the same call may succeed in a moment."""
    return code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain(path: str, error: sqlite3.Error, patience_s: float) -> FileUnavailable:
    """The error to show for one of SQLite's."""
    code = code_of(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return FileUnavailable(
            f"{path} was locked by another process for more than {patience_s:g} s",
            "a program that keeps a write transaction open (an sqlite3 shell, a backup)?",
        )
    if code == sqlite3.SQLITE_FULL:
        return FileUnavailable(f"{path} cannot grow", "the disk or the quota is full")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return FileUnavailable(
            f"{path} is read-only for user id {os.geteuid()}",
            "the file, its -wal and -shm companions and their folder must be writable",
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return _cannot_open(path)
    if code == sqlite3.SQLITE_NOTADB:
        return FileRefused(f"{path} is not an SQLite database", "name another file in the URL, or move this one away")
    if code == sqlite3.SQLITE_CORRUPT:
        return FileRefused(
            f"{path} is damaged ({error})",
            f"stop all that use it, save what can be saved with `sqlite3 {path} .recover`, and start with a new file",
        )
    if code == sqlite3.SQLITE_TOOBIG:
        return FileRefused("a message or result is larger than SQLite can keep (1 GB)", "store a reference instead")
    return FileUnavailable(f"{path}: {error}")


def _cannot_open(path: str) -> FileUnavailable:
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        return FileRefused(f"{path} is a folder", "name a file in the URL")
    if not os.path.isdir(folder):
        return FileUnavailable(f"the folder {folder} of {os.path.basename(path)} does not exist", f"mkdir -p {folder}")
    return FileUnavailable(f"{path} cannot be opened by user id {os.geteuid()}", "check its rights and its folder's")
