"""A whole worker on the toy application and a broker in memory; run as `python -m tests.core.toy_worker`.

Everything but application, broker and one plugin is real. The test steers it by files and environment variables
and reads what became of it from a ledger:

    TOY_LEDGER    path of the ledger
    TOY_MESSAGES  JSON list of [task, id, arguments, attempts]: what waits in the broker
    TOY_HEADERS   JSON object: headers of all these messages
    TOY_AWAY      while this file exists the broker is away
    TOY_HOOK      name of the plugin's hook that raises
    TOY_KILL_WAIT seconds, for the kernel's constant
    TOY_STEP      what the plugin's boot step does: "fail", "wait", "fail to stop"
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint
from typing import Any

from kernel_worker import worker
from kernel_worker.config import compose
from kernel_worker.drivers import BrokerContext
from kernel_worker.errors import BrokerUnavailable, KernelWorkerError
from kernel_worker.hookspecs import hookimpl
from kernel_worker.registry import Registry
from kernel_worker.selection import Entry
from kernel_worker.steps import Bootstep
from kernel_worker.testing import Ledger, envelope
from kernel_worker.types import Delivery, Settlement, Verdict

from .memory_broker import MemoryBroker
from .toy_app import LOADER

kw_api = 1


class JournalBroker(MemoryBroker):
    """Notes in the ledger what it is asked to do."""

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        self._ledger = Ledger(os.environ["TOY_LEDGER"])
        self._attempts: dict[str, int] = {}
        headers = json.loads(os.environ.get("TOY_HEADERS", "{}"))
        for task, task_id, arguments, attempts in json.loads(os.environ.get("TOY_MESSAGES", "[]")):
            self._attempts[task_id] = attempts
            self.put(envelope(task, arguments, task_id=task_id, headers=headers))

    def _check(self) -> None:
        if os.path.exists(os.environ.get("TOY_AWAY", "")):
            raise BrokerUnavailable("connection refused")

    def connect(self) -> None:
        self._ledger.note("connect")
        super().connect()

    def _reserve(self) -> Delivery:
        delivery = super()._reserve()
        delivery.attempts = self._attempts[delivery.headers["id"]]
        return delivery

    def _settle(self, settlement: Settlement) -> None:
        # First: what is put back may be fetched before all of the batch is settled.
        self._attempts[settlement.delivery.headers["id"]] += settlement.count
        super()._settle(settlement)

    def settle(self, batch: Sequence[Settlement]) -> None:
        super().settle(batch)
        for each in batch:
            task_id = each.delivery.headers["id"]
            if each.verdict is Verdict.DEAD:
                self._ledger.note("dead", id=task_id, reason=each.reason)
            else:
                self._ledger.note(each.verdict.value, id=task_id, count=each.count)

    def renew(self, held: Sequence[Delivery]) -> None:
        super().renew(held)
        self._ledger.note("renew", ids=[each.headers["id"] for each in held])

    def close(self) -> None:
        super().close()
        for offence in self.offences:
            self._ledger.note("offence", text=offence)
        self._ledger.note("broker closed")


class _ToyStep(Bootstep):
    name = "toy"
    requires = ("consumer",)

    def __init__(self, does: str, ledger: Ledger) -> None:
        self._does = does
        self._ledger = ledger

    def start(self, ctx: Any) -> object:
        self._ledger.note("step starts")
        if self._does == "fail":
            raise OSError("port 80 is taken")
        if self._does == "wait":
            ctx.wait(lambda: False, "nothing that ever happens")
        return None

    def stop(self, ctx: Any, deadline: float) -> None:
        self._ledger.note("step stops")
        if self._does == "fail to stop":
            raise RuntimeError("stuck")

    def terminate(self, ctx: Any) -> None:
        self._ledger.note("step is terminated")


class _ToyPlugin:
    """Notes the worker's life in the ledger."""

    kw_api = 1

    def __init__(self) -> None:
        self._ledger = Ledger(os.environ["TOY_LEDGER"])

    @hookimpl
    def kw_bootsteps(self) -> Iterable[Bootstep]:
        does = os.environ.get("TOY_STEP", "")
        return [_ToyStep(does, self._ledger)] if does else []

    def _may_raise(self, hook: str) -> None:
        if os.environ.get("TOY_HOOK") == hook:
            raise RuntimeError("a plugin's bug")

    @hookimpl
    def kw_worker_ready(self) -> None:
        self._may_raise("kw_worker_ready")
        self._ledger.note("ready")

    @hookimpl
    def kw_executor_up(self, pid: int) -> None:
        self._may_raise("kw_executor_up")

    @hookimpl
    def kw_executor_down(self, pid: int) -> None:
        self._may_raise("kw_executor_down")

    @hookimpl
    def kw_worker_closing(self, reason: str) -> None:
        self._ledger.note("closing", reason=reason)
        self._may_raise("kw_worker_closing")

    @hookimpl
    def kw_worker_stopped(self, exit_code: int) -> None:
        self._ledger.note("stopped", exit_code=exit_code)


def _registry() -> Registry:
    """The installed pools; application and broker are the toys."""
    registry = Registry.discover()
    entries = {kind: dict(found) for kind, found in registry.entries.items()}
    for kind, name, target in (("brokers", "memory", f"{__name__}:JournalBroker"), ("apps", "toy", LOADER)):
        entries[kind] = {
            name: Entry(
                kind,
                name,
                EntryPoint(name, target.replace("__main__", "tests.core.toy_worker"), f"kernel_worker.{kind}"),
            )
        }
    for kind in ("plugins", "executor", "control"):
        entries[kind] = {}
    return Registry(entries)


def main(options: dict[str, str]) -> int:
    """Run a worker; options of the section `worker` by name."""
    worker.KILL_WAIT_S = float(os.environ.get("TOY_KILL_WAIT", worker.KILL_WAIT_S))
    registry = _registry()
    selection = registry.select(None)
    hooks = registry.load_plugins(selection)
    hooks.register(_ToyPlugin(), "toy", "toy (kernel-toy 1.0)")
    pool = registry.load_pool(selection, registry.choose_pool(selection, options.get("pool")))
    given = {("worker", name): value for name, value in options.items()}
    try:
        config = compose({pool.name: pool.Options}, command_line=given, environ={}).freeze()
        return worker.run(config, registry, selection, hooks)
    except KernelWorkerError as error:
        sys.stderr.write(f"kw: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
