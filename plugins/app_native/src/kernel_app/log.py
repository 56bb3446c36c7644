"""Loggers of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

TASK_LOGGER = "kernel_app.task"


def get_task_logger(name: str) -> logging.Logger:
    """A logger for the use of tasks in module `name`; it goes where the worker's own lines about tasks go."""
    import logging  # clients that define and send tasks only do without it

    return logging.getLogger(TASK_LOGGER if name == TASK_LOGGER else f"{TASK_LOGGER}.{name}")
