"""The sending side of the @name@ broker. Runs in clients and executors, any thread; imports no kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .folder import Folder


class @Name@Publisher:
    """Sends messages, see `kernel_worker.Publisher`."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._folder = Folder(url)

    def publish(self, message: Any) -> None:
        """Append one message, on disk before this returns.

        :raises ConnectionError: the folder cannot be written.
        """
        try:
            self._folder.add(message.queue, message.envelope(), message.eta or 0.0)
        except OSError as error:
            raise ConnectionError(f"{self._folder.root}: {error.strerror}") from error

    def publish_many(self, messages: Sequence[Any]) -> None:
        """Append messages in order."""
        for message in messages:
            self.publish(message)

    def close(self) -> None:
        """Nothing is kept open."""
