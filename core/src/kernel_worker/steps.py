"""Boot steps: one flat graph, started in order, stopped in reverse, rolled back when one fails.

Imports nothing of the kernel but its errors. Steps share nothing by attribute: `start` returns the object
that those who require the step may use, as `ctx.api(name)`.
"""

from __future__ import annotations

import difflib
import graphlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from .errors import KernelWorkerError, PluginError, StartError, StartInterrupted

log = logging.getLogger("kernel_worker.steps")


class Bootstep:
    """One part of the worker that is started and stopped. All methods run on the loop thread.

    `name` is unique in a worker; `requires` names steps that must be up before this one (and stop
    after it); `before` names steps that must start after this one.
    """

    name: str
    requires: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def start(self, ctx: Any) -> object:
        """Come up; return, when up, the object others may use. Raise to fail.

        May wait by `ctx.loop.run_until(...)`, which goes on turning the loop.
        """

    def close(self, ctx: Any) -> None:
        """Take no new work. Must not block. Called once when shutdown begins, in start order."""

    def stop(self, ctx: Any, deadline: float) -> None:
        """Finish until the monotonic `deadline`, then be stopped.

        Must tolerate that `start` failed half-way or was never called, and a second call.
        """

    def terminate(self, ctx: Any) -> None:
        """End at once; called instead of `stop`, or after one that raised. Must tolerate the same."""


def order(steps: Iterable[Bootstep], owners: dict[str, str]) -> list[Bootstep]:
    """Steps in the order they start; independent ones by name, so that the order is reproducible.

    :param owners: step name to the plugin that gave it, for messages.
    :raises PluginError: two steps of one name, an unknown requirement, or a cycle (which is printed).
    """
    by_name: dict[str, Bootstep] = {}
    for step in steps:
        if step.name in by_name:
            raise PluginError(
                f"two boot steps are named {step.name!r} (the second one from {owners.get(step.name, 'unknown')})",
                hint="rename one of them, or select only one of the two plugins with --plugins",
            )
        by_name[step.name] = step
    graph: dict[str, set[str]] = {name: set() for name in by_name}
    for step in by_name.values():
        for other in step.requires:
            graph[step.name].add(_known(other, step, by_name, owners))
        for other in step.before:
            if other in by_name:  # `before` orders when both are there; it demands nothing
                graph[other].add(step.name)
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        cycle = " → ".join(reversed(error.args[1]))
        raise PluginError(f"boot steps require each other in a circle: {cycle}") from None
    ordered: list[Bootstep] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()])
        name = ready.pop(0)
        ordered.append(by_name[name])
        sorter.done(name)
    return ordered


def _known(name: str, step: Bootstep, by_name: dict[str, Bootstep], owners: dict[str, str]) -> str:
    if name in by_name:
        return name
    nearest = difflib.get_close_matches(name, by_name, n=1)
    asked = f"step {step.name!r} of {owners.get(step.name, 'unknown')}"
    raise PluginError(
        f"{asked} requires a step named {name!r}, and there is none (have: {', '.join(sorted(by_name))})",
        hint=f"did you mean {nearest[0]!r}?" if nearest else "select the plugin that provides it",
    )


class Sequence:
    """Starts and stops an ordered list of steps."""

    def __init__(self, ordered: list[Bootstep], owners: dict[str, str]) -> None:
        self.ordered = ordered
        self.owners = owners
        self.started: list[Bootstep] = []
        self.apis: dict[str, Any] = {}
        """What each step returned from `start`, by name; whoever asks for one knows its type."""
        self.current: Bootstep | None = None
        """The step that is starting or stopping now; named when it hangs."""

    def start(self, ctx: Any) -> None:
        """Start all. When one fails, it and the started ones are stopped in reverse, and the error names it.

        :raises StartError: with the cause chained; errors of the roll-back are attached as notes.
        :raises StartInterrupted: a signal came; everything was rolled back.
        """
        for step in self.ordered:
            self.current = step
            try:
                self.apis[step.name] = step.start(ctx)
            except Exception as error:  # the boundary of boot steps: roll back and name the step
                failure = self._failure(step, error)
                self._roll_back(step, ctx, failure)
                self.current = None
                if failure is error:
                    raise
                raise failure from error
            self.started.append(step)
        self.current = None

    def _failure(self, step: Bootstep, error: Exception) -> Exception:
        if isinstance(error, StartInterrupted) or (isinstance(error, KernelWorkerError) and error.exit_code != 70):
            return error
        owner = self.owners.get(step.name, "unknown")
        text = error.message if isinstance(error, KernelWorkerError) else f"{type(error).__name__}: {error}"
        return StartError(
            f"boot step {step.name!r} of {owner} failed: {text}",
            step=step.name,
            plugin=owner,
            hint=error.hint if isinstance(error, KernelWorkerError) else "",
        )

    def _roll_back(self, failed: Bootstep, ctx: Any, failure: Exception) -> None:
        deadline = time.monotonic() + 5.0
        for step in (failed, *reversed(self.started)):
            self.current = step
            try:
                step.stop(ctx, deadline)
            except Exception as error:  # roll-back goes on whatever one step does
                failure.add_note(f"while rolling back step {step.name!r}: {type(error).__name__}: {error}")
        self.started.clear()

    def close(self, ctx: Any) -> None:
        """Ask every started step to take no new work, in start order."""
        for step in self.started:
            try:
                step.close(ctx)
            except Exception:  # one step's bug must not keep the others from closing
                log.exception("step %s failed to close", step.name, extra={"action": "close_failed"})

    def stop(self, ctx: Any, deadline: float) -> bool:
        """Stop the started steps in reverse; one that raises is terminated. True when none raised."""
        clean = True
        while self.started:
            step = self.current = self.started[-1]
            try:
                step.stop(ctx, deadline)
            except Exception:  # go on stopping the others
                clean = False
                log.exception("step %s failed to stop", step.name, extra={"action": "stop_failed"})
                self._terminate(step, ctx)
            self.started.pop()
        self.current = None
        return clean

    def _terminate(self, step: Bootstep, ctx: Any) -> None:
        try:
            step.terminate(ctx)
        except Exception:  # nothing is left to try for this step
            log.exception("step %s failed to terminate", step.name, extra={"action": "terminate_failed"})
