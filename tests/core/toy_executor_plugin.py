"""Plugins of the executor, for tests: objects with hook implementations."""

from __future__ import annotations

import os
from typing import Any

from kernel_worker.drivers import Call
from kernel_worker.hookspecs_executor import hookimpl
from kernel_worker.testing import Ledger
from kernel_worker.types import Job, Outcome


def _ledger() -> Ledger:
    return Ledger(os.environ["TOY_LEDGER"])


class _Wrapper:
    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def kwx_wrap_task(self, task: str, call: Call) -> Call | None:
        if task != "toy.noop":
            return None

        def wrapped(job: Job) -> Outcome:
            _ledger().note("before", by=self.name)
            try:
                return call(job)
            finally:
                _ledger().note("after", by=self.name)

        return wrapped


class _Outer(_Wrapper):
    @hookimpl
    def kwx_init(self, executor: Any) -> None:
        _ledger().note("init")

    @hookimpl
    def kwx_exit(self, executor: Any, reason: str) -> None:
        _ledger().note("exit", by=reason)


class _Broken:
    @hookimpl
    def kwx_init(self, executor: Any) -> None:
        raise RuntimeError("no database")


outer = _Outer("outer")
inner = _Wrapper("inner")
broken = _Broken()
