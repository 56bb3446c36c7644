"""How the processes of a worker log: where to, and in which form. Kernel process and executors; standard library only.

Records may carry `task_id` and `task_name`: executors add them to what is logged while a task runs.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

FORMATS = ("text", "json")


def expand_log_path(pattern: str, node: str, index: int = 0) -> str:
    """The log file of one process: `%n` and `%h` name and host of the node, `%d` the host's domain, `%p` the whole node
    name, `%i` the executor's number (0 in the kernel process), `%I` the same as "-1" ("" there), `%%` a percent.

    :raises ValueError: a key that does not exist.
    """
    name, _, host = node.partition("@")
    number = f"-{index}" if index else ""
    keys = {"n": name, "h": host, "d": host.partition(".")[2], "p": node, "i": str(index), "I": number, "%": "%"}
    literal, *parts = pattern.replace("%%", "%\0").split("%")
    for part in parts:
        key = part[:1].replace("\0", "%")
        if key not in keys:
            raise ValueError(f"{pattern!r} has the unknown key '%{key}' (there are %n, %h, %d, %p, %i, %I and %%)")
        literal += keys[key] + part[1:]
    return literal


class TextFormatter(logging.Formatter):
    """For people. What an application logs while a task runs begins with the task."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = record.__dict__
        if "action" not in fields and fields.get("task_id"):  # the worker's own lines say it in their words
            record.message = f"{fields.get('task_name')}[{fields['task_id']}]: {record.message}"
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """For machines: one object per line.

    :param node: the node name.
    """

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        fields = record.__dict__
        value: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "node": self._node,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, name in (
            ("task_id", "task_id"),
            ("task_name", "task_name"),
            ("task", "task_name"),
            ("action", "action"),
        ):
            if fields.get(key):
                value.setdefault(name, str(fields[key]))
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return json.dumps(value)


def configure_logging(options: dict[str, Any], index: int = 0) -> None:
    """Give the loggers of the kernel and of the selected plugins (`loggers`) a handler. The root logger and the
    application's own are left alone.

    :param options: what `worker.log_options` gives.
    :param index: the executor's number, from 1; 0 in the kernel process.
    :raises OSError: the file cannot be written.
    """
    handler: logging.Handler
    node = options.get("node", "")
    if options.get("file"):
        from logging.handlers import WatchedFileHandler  # goes on in the new file after the old one was moved away

        handler = WatchedFileHandler(expand_log_path(options["file"], node, index))
    else:
        handler = logging.StreamHandler()
    if options.get("style") == "json":
        handler.setFormatter(JsonFormatter(node))
    else:
        handler.setFormatter(TextFormatter(options["format"]))
    for name in options["loggers"]:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(options["level"])
        logger.propagate = False


def take_log_of_its_own(options: dict[str, Any], index: int) -> None:
    """Where each process has its own file, open that of this executor. After the fork, once its number is known."""
    if "%i" in (options.get("file") or "").replace("%%", "").replace("%I", "%i"):
        configure_logging(options, index)
