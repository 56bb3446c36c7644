"""The boot step `recycle`: bounds tasks per executor, and watches their memory. Loop thread."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from kernel_worker import Bootstep

from . import RecycleOptions, check
from .memory import Memory, open_memory

if TYPE_CHECKING:
    from kernel_worker.worker import StepContext

log = logging.getLogger("kernel_recycle")

TICK_S = 0.1
"""How long a leaking task can grow unseen."""
AHEAD = 2.0
"""The next one is begun this many start-ups before the limit will be reached, by the growth since the last look."""
NEAR = 0.5
"""Of the limit; below it growth is taken for that of the first tasks."""
FAR_OVER = 1.5
"""Times the limit above which an executor gets no more work, although the next one is not up."""


class MemoryWatch:
    """Has executors replaced that are larger than `limit_kib`."""

    def __init__(self, supervisor: Any, limit_kib: int, memory: Memory) -> None:
        self.is_active = True
        self._supervisor = supervisor
        self._limit_kib = limit_kib
        self._memory = memory
        self._seen: dict[int, tuple[int, int, float]] = {}
        """By process: how many tasks it had been given, its size in KiB, and when."""
        self._warned = False

    def look(self) -> None:
        """Read the memory of those that run something or have done so since the last look."""
        if not self.is_active:
            return
        handles = {h.pid: h for h in self._supervisor.executors.values() if h.up and not h.retiring}
        changed = [pid for pid, h in handles.items() if h.outstanding or self._seen.get(pid, (0,))[0] != h.given]
        now = time.monotonic()
        for pid, kib in self._memory.read(changed).items():
            handle = handles[pid]
            if kib > self._limit_kib:
                self._over(handle, kib)
            elif pid in self._seen and handle.heir is None and kib > NEAR * self._limit_kib:
                _, before, at = self._seen[pid]
                growth = (kib - before) / max(TICK_S, now - at)
                if kib + growth * AHEAD * self._supervisor.succession.startup_s > self._limit_kib:
                    self._supervisor.succession.prepare(handle)
            self._seen[pid] = (handle.given, kib, now)
        for pid in self._seen.keys() - handles.keys():
            del self._seen[pid]

    def _over(self, handle: Any, kib: int) -> None:
        if not handle.given:
            if not self._warned:
                self._warned = True
                log.warning(
                    "executor %d has %d KiB before its first task, the limit is %d KiB: each will be replaced after "
                    "one task. Use a larger --max-memory-per-child",
                    handle.pid,
                    kib,
                    self._limit_kib,
                    extra={"action": "memory_limit_too_small", "pid": handle.pid, "rss_kib": kib},
                )
            return
        reason = f"it has {kib} KiB of resident memory, the limit is {self._limit_kib} KiB"
        self._supervisor.succession.replace(handle, reason, at_once=kib > FAR_OVER * self._limit_kib)


class RecycleStep(Bootstep):
    """Sets the bounds once the application's settings are known."""

    name = "recycle"
    requires = ("pool", "timer")

    def __init__(self) -> None:
        self._watch: MemoryWatch | None = None
        self._memory: Memory | None = None

    def start(self, ctx: StepContext) -> None:
        supervisor: Any = ctx.api("pool")
        timers: Any = ctx.api("timer")
        section: RecycleOptions = ctx.config.section("recycle")
        check(ctx.worker)
        supervisor.succession.max_tasks = section.max_tasks or 0
        if section.max_memory is not None:
            self._memory = open_memory()
            self._watch = MemoryWatch(supervisor, section.max_memory, self._memory)
            timers.every(TICK_S, self._watch.look)

    def close(self, ctx: StepContext) -> None:
        if self._watch is not None:
            self._watch.is_active = False

    def stop(self, ctx: StepContext, deadline: float) -> None:
        self.close(ctx)
        if self._memory is not None:
            self._memory.close()

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, 0.0)
