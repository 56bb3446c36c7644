"""Loggers of tasks, and what tasks print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .context import Context, running
from .representation import printable

if TYPE_CHECKING:
    import logging
    from typing import TextIO

TASK_LOGGER = "kernel_app.task"
PRINTED_LOGGER = "kernel_app.printed"
PRINTED = "_printed"
"""Attribute of a request while its task has printed something without an end of line, or had."""
LINE_CHARS = 8192
"""Longer lines of output are cut into several."""


def get_task_logger(name: str) -> logging.Logger:
    """A logger for the use of tasks in module `name`; it goes where the worker's own lines about tasks go, and its
    lines begin with the task's name and id."""
    import logging  # clients that define and send tasks only do without it

    return logging.getLogger(TASK_LOGGER if name == TASK_LOGGER else f"{TASK_LOGGER}.{name}")


def add_task_fields(record: logging.LogRecord) -> bool:
    """A filter that gives records `task_id` and `task_name` of the task that logs. Where the record is made."""
    context = running()
    if context is not None:
        fields = record.__dict__
        fields.setdefault("task_id", printable(str(context.id)))
        fields.setdefault("task_name", printable(str(context.task)))
    return True


def name_tasks_in_log() -> None:
    """Have all handlers of the worker's loggers tell which task logs. Executors, once per process."""
    import logging

    for handler in logging.getLogger("kernel_app").handlers:
        handler.addFilter(add_task_fields)


class PrintedLines:
    """Stands for `sys.stdout` or `sys.stderr` in executors: what tasks write goes to the log, line by line.

    Everything but writing is the original stream's, so programs that tasks start write where they did before.

    :param stream: the original.
    :param level: of the log lines.
    """

    def __init__(self, stream: TextIO | None, level: int) -> None:
        import logging
        import threading

        self._stream = stream
        self._level = level
        self._log = logging.getLogger(PRINTED_LOGGER)
        self._rest = ""
        self._here = threading.local()  # of each thread, or greenlet: others may print meanwhile

    def write(self, text: str) -> int:
        """Log the lines that are complete; the rest waits for more, in the task that wrote it."""
        if self._is_telling:  # a handler of the log prints
            return len(text)
        *lines, rest = (self._take() + text).split("\n")
        while len(rest) > LINE_CHARS:
            lines.append(rest[:LINE_CHARS])
            rest = rest[LINE_CHARS:]
        self._put(rest)
        self._tell(lines)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As a file's."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what has no end of line yet."""
        if not self._is_telling and (rest := self._take()):
            self._put("")
            self._tell([rest])

    def isatty(self) -> bool:
        """No: it is a log."""
        return False

    def _take(self) -> str:
        context = running()
        return self._rest if context is None else context.__dict__.get(PRINTED, {}).get(id(self), "")

    def _put(self, rest: str) -> None:
        context: Context | None = running()
        if context is None:
            self._rest = rest
        elif rest or PRINTED in context.__dict__:
            context.__dict__.setdefault(PRINTED, {})[id(self)] = rest

    @property
    def _is_telling(self) -> bool:
        return getattr(self._here, "is_telling", False)

    def _tell(self, lines: list[str]) -> None:
        self._here.is_telling = True
        try:
            for line in lines:
                if line.strip():
                    self._log.log(self._level, "%s", printable(line, LINE_CHARS))
        finally:
            self._here.is_telling = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redirect_output(level_name: str) -> None:
    """Send what is printed in this process to the log. Executors, once per process.

    :param level_name: `worker_redirect_stdouts_level`.
    """
    import logging
    import sys

    level = logging.getLevelName(str(level_name).upper())
    level = level if isinstance(level, int) else logging.WARNING
    sys.stdout = PrintedLines(sys.stdout, level)
    sys.stderr = PrintedLines(sys.stderr, level)


def flush_output() -> None:
    """The task ends, whose request has `PRINTED`: log what it printed without an end of line."""
    import sys

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, PrintedLines):
            stream.flush()
