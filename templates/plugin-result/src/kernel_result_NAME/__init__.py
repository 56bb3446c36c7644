"""Results in a folder: one file per task. `@name@:///relative/folder` or `@name@:////absolute/folder`.

Runs in executors (storing) and clients (reading); any thread. Imports no kernel, so that clients need none.

    <folder>/<SHA-256 of the task id>.json    the task meta as it was given; its modification time: when it expires
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

POLL_S = 0.02
"""A folder tells nobody what is new in it: `wait` looks this often."""
NEVER = 2.0**32
"""Expiry of a result that is kept for ever, in unix time; far enough, and file systems can hold it."""


class @Name@Results:
    """A result backend, see `kernel_worker.ResultBackend` for what each method promises."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._folder = Path(url.partition("://")[2].removeprefix("/"))

    def store(self, results: Sequence[Any]) -> None:
        """Store all; a stored SUCCESS is never replaced by another state, nor any end by a RETRY."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for result in results:
                path = self._path(result.task_id)
                ends = ("SUCCESS", "FAILURE", "REVOKED") if result.state == "RETRY" else ("SUCCESS",)
                if result.state != "SUCCESS" and self._state_in(path) in ends:
                    continue
                # Readers see the old file or the new one, never half of it.
                fresh = path.with_suffix(f".{uuid.uuid4().hex}")
                fresh.write_bytes(result.payload)
                expires = NEVER if result.expires is None else time.time() + result.expires
                os.utime(fresh, (expires, expires))
                fresh.replace(path)
        except OSError as error:
            raise ConnectionError(f"{self._folder}: {error.strerror}") from error

    def fetch(self, task_id: str) -> bytes | None:
        """The stored task meta, or None."""
        path = self._path(task_id)
        try:
            if path.stat().st_mtime < time.time():
                path.unlink(missing_ok=True)
                return None
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConnectionError(f"{self._folder}: {error.strerror}") from error

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        """Wait for a final meta; None after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            meta = self.fetch(task_id)
            if meta is not None and is_final(meta):
                return meta
            if deadline is not None and time.monotonic() >= deadline:
                return None
            time.sleep(POLL_S)

    def forget(self, task_id: str) -> None:
        """Delete what is stored."""
        self._path(task_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is kept open."""

    def _path(self, task_id: str) -> Path:
        # An id may be longer than a file name, and must not leave the folder.
        return self._folder / f"{hashlib.sha256(task_id.encode()).hexdigest()}.json"

    def _state_in(self, path: Path) -> str:
        try:
            return json.loads(path.read_bytes())["status"] if path.stat().st_mtime >= time.time() else ""
        except (FileNotFoundError, ValueError):
            return ""
