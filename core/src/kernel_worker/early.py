"""What `kw run` begins before it has read its command line: the interpreter in which the application is imported.

Composing a worker takes longer than to start an interpreter and import an application, and there is more than one
processor. So the pool and the application are guessed from the words of the command line; the real parsing comes
later, and when it finds another pool the guess is dropped. Imports next to nothing.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

DEFAULT_POOL = "prefork"


class Started(Protocol):
    """What a pool's `start_interpreter` returns; its spawner knows more of it."""

    def close(self) -> None: ...


class Early:
    """What was started for the pool that was guessed."""

    def __init__(self, pool: str = "", started: Started | None = None) -> None:
        self.pool = pool
        self._started = started

    def of(self, pool: str) -> Started | None:
        """What was started, if it was for this pool."""
        return self._started if pool == self.pool else None

    def close(self) -> None:
        """End it, if it has not ended: nobody used it, or no worker came up. Harmless otherwise."""
        if self._started is not None:
            self._started.close()


def begin(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> Early:
    """Start the interpreter of a pool that brings a module `kernel_pool_<name>.early` with the function
    `start_interpreter(app: str) -> Started`.

    :param words: the command line behind `kw run`.
    :return: to be closed when the command ends.
    """
    pool = _value(words, "-P", "--pool") or environment.get("KW_POOL") or DEFAULT_POOL
    if "-h" in words or "--help" in words or not pool.isidentifier():
        return Early()
    app = _value(words, "-A", "--app") or environment.get("KW_APP") or ""
    elsewhere = _value(words, "", "--workdir") or environment.get("KW_WORKDIR")
    try:
        module = importlib.import_module(f"kernel_pool_{pool}.early")
        return Early(pool, module.start_interpreter("" if elsewhere else app))
    except (ImportError, OSError, ValueError):  # no such pool, or no process: told where it is needed
        return Early()


def _value(words: Sequence[str], short: str, long: str) -> str:
    """The value of an option, as far as it can be seen without knowing the others; "" = not there."""
    for at, word in enumerate(words):
        if word in (short, long) and word:
            return words[at + 1] if at + 1 < len(words) else ""
        if word.startswith(long + "="):
            return word[len(long) + 1 :]
        if short and word.startswith(short) and not word.startswith("--"):
            return word[len(short) :]
    return ""
