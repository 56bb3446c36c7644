"""Revokes in a file (`--statedb`): JSON lines that are appended, and written anew when there are too many.

    {"kw_statedb": 1}
    {"id": "5128a47c-…", "until": 1795220000.5}
    {"stamp": ["header", "value"], "until": 1795220000.5}

A crash leaves at most a torn last line, which is passed over. Writing anew is one rename, so at every moment there is
a whole file. One thread (kw-limits), after `load`; raises OSError when the disk does not take it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from kernel_worker.errors import ConfigError

from .revokes import KEPT_S

HEAD = '{"kw_statedb": 1}'
SPARE_LINES = 10_000
"""Lines beyond those that are needed before the file is written anew."""

Record = tuple[str | tuple[str, str], float]
"""A revoked id, or a header and value, and the unix time until which it is."""


class StateFile:
    """The file of one worker.

    :param path: made when it does not exist; its folder must.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None
        self._lines = 0
        self._is_whole = True
        """Whether everything that was to be written is in the file."""

    def load(self, now: float) -> list[Record]:
        """What the file holds that is worth keeping. Before the thread starts.

        :raises ConfigError: it cannot be read, or is another program's file. It is left as it is.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
            if not self.path.parent.is_dir():
                raise ConfigError(
                    f"--statedb {self.path}: there is no folder {self.path.parent}", hint="make it first"
                ) from None
        except OSError as error:
            raise ConfigError(f"--statedb {self.path}: {error.strerror}", hint="choose another path") from None
        lines = data.decode("utf-8", "replace").split("\n")
        if data and lines[0] != HEAD and not HEAD.startswith(data.decode("utf-8", "replace")):
            raise ConfigError(
                f"--statedb {self.path} is not a state file of kw; it is left as it is",
                hint="choose another path, or move the file away",
            )
        found = [record for record in _records(lines[1:]) if record[1] > now - KEPT_S]
        self._lines = len(lines)
        self._is_whole = data.endswith(b"\n") and len(found) == len([line for line in lines[1:] if line])
        return found

    def write(self, new: Iterable[Record], count: int, everything: Callable[[], Iterable[Record]]) -> None:
        """Make `new` durable.

        :param count: how many records are worth keeping, `new` included.
        :param everything: gives them, for when the file is written anew.
        :raises OSError: the disk is full, or gone. The next call writes everything.
        """
        lines = [_line(record) for record in new]
        if self._is_whole and self._lines + len(lines) <= 2 * count + SPARE_LINES:
            self._append(lines)
        else:
            self._rewrite([_line(record) for record in everything()])

    def _append(self, lines: list[str]) -> None:
        self._is_whole = False  # until it is known: what was torn is not written to again
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write("".join(f"{line}\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines += len(lines)
        self._is_whole = True

    def _rewrite(self, lines: list[str]) -> None:
        self._is_whole = False
        self.close()
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in (HEAD, *lines)))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        self._lines = len(lines) + 1
        self._is_whole = True

    def close(self) -> None:
        """Close the file. Idempotent; raises nothing."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what was torn is written anew
                file.close()


def _line(record: Record) -> str:
    key, until = record
    named: dict[str, Any] = {"id": key} if isinstance(key, str) else {"stamp": list(key)}
    return json.dumps({**named, "until": round(until, 3)})


def _records(lines: Iterable[str]) -> Iterator[Record]:
    """What can be read; a torn or damaged line costs only itself."""
    for line in lines:
        try:
            found = json.loads(line)
            until = float(found["until"])
            if isinstance(found.get("id"), str):
                yield found["id"], until
            else:
                header, value = found["stamp"]
                yield (str(header), str(value)), until
        except (ValueError, KeyError, TypeError):
            continue
