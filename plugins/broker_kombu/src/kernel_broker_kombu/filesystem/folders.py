"""Where the messages are, by URL and `broker_transport_options`; writing them. Imports nothing of the kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from .names import is_queue_name, new_name

PRIVATE = ".kw"
"""Folder in the data folder for everything that is not waiting; no name that peers look at."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one URL.

    :param incoming: a worker takes messages from here (`data_folder_in`).
    :param outgoing: a client puts messages here (`data_folder_out`).
    :param control: what is bound to which exchange (`control_folder`).
    """

    incoming: str
    outgoing: str
    control: str

    @classmethod
    def of(cls, url: str, options: Mapping[str, Any]) -> Folders:
        """The folders that an option names, else the URL, else kombu's defaults.

        :raises ValueError: the URL is no `filesystem://` or `filesystem:///absolute/folder`.
        """
        host, slash, path = url.partition("://")[2].partition("/")
        if host not in ("", "localhost") or "?" in path:
            raise ValueError("a filesystem URL is filesystem:// with options, or filesystem:///absolute/folder")
        folder = os.path.normpath(slash + unquote(path)) if path.strip("/") else ""
        return cls(
            os.path.abspath(options.get("data_folder_in") or folder or "data_in"),
            os.path.abspath(options.get("data_folder_out") or folder or "data_out"),
            os.path.abspath(options.get("control_folder") or (f"{folder}/control" if folder else "control")),
        )

    def private(self, *parts: str) -> str:
        """A place below `.kw` of the incoming folder."""
        return os.path.join(self.incoming, PRIVATE, *parts)

    @property
    def held(self) -> str:
        """One folder per holder."""
        return self.private("held")

    @property
    def parked(self) -> str:
        """One folder per minute."""
        return self.private("parked")

    def dead(self, queue: str) -> str:
        """Dead letters of a queue."""
        return self.private("dead", quote(queue, safe=""))


def append(folder: str, queue: str, raw: bytes) -> None:
    """Add a message to the end of a queue; nobody sees it before it is whole.

    :raises LookupError: a queue cannot have this name.
    :raises OSError: the folder cannot be used.
    """
    if not is_queue_name(queue):
        raise LookupError(f"queue {queue!r} cannot be part of a file name")
    name = new_name(queue)
    draft = os.path.join(folder, PRIVATE, "new", name)
    try:
        write_file(draft, raw)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(draft), exist_ok=True)
        write_file(draft, raw)
    os.rename(draft, os.path.join(folder, name))


def write_file(path: str, raw: bytes) -> None:
    """Write a new file."""
    with open(path, "xb", buffering=0) as file:
        left = memoryview(raw)
        while left:
            left = left[file.write(left) :]


def move(source: str, target: str) -> bool:
    """Rename a file, making the target's folder if there is none; False when the source is gone.

    :raises OSError: anything else is wrong.
    """
    while True:
        try:
            os.rename(source, target)
            return True
        except FileNotFoundError:
            if not os.path.lexists(source):
                return False
            Path(target).parent.mkdir(parents=True, exist_ok=True)


def names_in(folder: str) -> list[str]:
    """What a folder holds; nothing when there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
