"""Deliberately wrong result backends, boot steps and control commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kernel_worker import ControlCommand, StoredResult

from .reference import COUNT_DOWN, EchoStep, MemoryResults

# ---------------------------------------------------------------------- results


class ReplacesSuccess(MemoryResults):
    """The last state wins, as after a redelivery that fails."""

    def state(self, task_id: str) -> str | None:
        return None


class RetryReplacesFailure(MemoryResults):
    """A retry that is told late hides how the task ended."""

    def store(self, results: Sequence[StoredResult]) -> None:
        for each in results:
            state = "PROGRESS" if each.state == "RETRY" else each.state
            super().store([replace(each, state=state)])


class FirstStateWins(MemoryResults):
    """Whatever was stored first stays."""

    def state(self, task_id: str) -> str | None:
        return None if super().state(task_id) is None else "SUCCESS"


class ExpiredSuccessBlocks(MemoryResults):
    """Remembers a success that has expired."""

    def state(self, task_id: str) -> str | None:
        return self.stored[task_id][0] if task_id in self.stored else None


class NeverExpires(MemoryResults):
    """Ignores `expires`."""

    def store(self, results: Sequence[StoredResult]) -> None:
        super().store([replace(each, expires=None) for each in results])


class ExpiresEverything(MemoryResults):
    """Gives every result of a burst the shortest expiry in it."""

    def store(self, results: Sequence[StoredResult]) -> None:
        shortest = min((each.expires for each in results if each.expires is not None), default=None)
        super().store([replace(each, expires=shortest) for each in results])


class ForgetsOnlyTheFirst(MemoryResults):
    """`forget` hides the result from `fetch` and keeps it against new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: set[str] = set()

    def forget(self, task_id: str) -> None:
        self.hidden.add(task_id)

    def fetch(self, task_id: str) -> bytes | None:
        return None if task_id in self.hidden else super().fetch(task_id)


class ReprintsTheMeta(MemoryResults):
    """Stores a changed copy."""

    def store(self, results: Sequence[StoredResult]) -> None:
        super().store([replace(each, payload=each.payload.replace(b": ", b":")) for each in results])


class StoresOneByOneSlowly(MemoryResults):
    """A round trip per result."""

    def store(self, results: Sequence[StoredResult]) -> None:
        for each in results:
            time.sleep(0.005)
            super().store([each])


class CutsLargeResults(MemoryResults):
    """A column that is too narrow."""

    def store(self, results: Sequence[StoredResult]) -> None:
        super().store([replace(each, payload=each.payload[:1_000_000]) for each in results])


class IgnoresCase(MemoryResults):
    """An index that does not tell a from A."""

    def store(self, results: Sequence[StoredResult]) -> None:
        super().store([replace(each, task_id=each.task_id.lower()) for each in results])

    def fetch(self, task_id: str) -> bytes | None:
        return super().fetch(task_id.lower())


class LeaksSubscriptions(MemoryResults):
    """A wait that ends with an error or a time-out does not unsubscribe."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        meta = None
        try:
            meta = super().wait(task_id, timeout, is_final)
        finally:
            self.waiting += meta is None
        return meta


class LeaksThreads(MemoryResults):
    """Each wait starts a thread that stays."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return super().wait(task_id, timeout, is_final)


class PollsForEver(MemoryResults):
    """Knows no time-out."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        end = time.monotonic() + 8  # for ever, as far as a test can tell
        while time.monotonic() < end:
            meta = self.fetch(task_id)
            if meta is not None and is_final(meta):
                return meta
            time.sleep(0.01)
        return None


class PollsSlowly(MemoryResults):
    """Looks every two seconds."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        end = time.monotonic() + (60 if timeout is None else timeout)
        while (meta := self.fetch(task_id)) is None or not is_final(meta):
            if time.monotonic() >= end:
                return None
            time.sleep(min(2.8, max(0.0, end - time.monotonic())))
        return meta


class TakesTheFirstState(MemoryResults):
    """Does not ask whether a state is final."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        return super().wait(task_id, timeout, lambda meta: True)


class DecidesItself(MemoryResults):
    """Has its own idea of what is final."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        return super().wait(task_id, timeout, lambda meta: b'"SUCCESS"' in meta or b'"FAILURE"' in meta)


class LooksThenSubscribes(MemoryResults):
    """A result stored in between is missed."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        meta = self.fetch(task_id)
        if meta is not None and is_final(meta):
            return meta
        time.sleep(0.001)
        with self.changed:
            told = self.changed.wait(timeout)
        return super().wait(task_id, 0.0, is_final) if told else None


class WakesTheWrongOne(MemoryResults):
    """Subscribes by prefix."""

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        end = time.monotonic() + (timeout or 60)
        while time.monotonic() < end:
            for name in list(self.stored):
                if name.startswith(task_id):
                    return self.fetch(name)
            time.sleep(0.01)
        return None


class PushReachesOne(MemoryResults):
    """Only one of several waiting callers is told."""

    def store(self, results: Sequence[StoredResult]) -> None:
        for each in results:
            self.stored[each.task_id] = (each.state, each.payload, None)
        with self.changed:
            self.changed.notify(1)


# ---------------------------------------------------------------------- boot steps


LOST: list[Any] = []  # keeps what a step forgot, so that no garbage collection closes it in time


class NotStoppableTwice(EchoStep):
    """Closes its sockets again."""

    def stop(self, ctx: Any, deadline: float) -> None:
        before = self.sockets
        super().stop(ctx, deadline)
        if before is None and self.thread is not None:
            raise OSError("already closed")


class NeedsAStart(EchoStep):
    """Stops what was never started."""

    def stop(self, ctx: Any, deadline: float) -> None:
        if self.thread is None:
            raise AttributeError("'NoneType' object has no attribute 'join'")
        super().stop(ctx, deadline)


class HalfStartLeaks(EchoStep):
    """Remembers its thread when all of the start went well, and not before."""

    def start(self, ctx: Any) -> object:
        try:
            return super().start(ctx)
        except BaseException:
            LOST.append(self.sockets)
            self.sockets = None
            raise


class StartsWhenMade(EchoStep):
    """Opens its sockets in the constructor."""

    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


class LeavesItsThread(EchoStep):
    """Starts a second thread and forgets it."""

    def start(self, ctx: Any) -> object:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return super().start(ctx)


class CloseWaits(EchoStep):
    """Finishes its work in `close`."""

    def close(self, ctx: Any) -> None:
        super().close(ctx)
        time.sleep(1.5)


class IgnoresTheDeadline(EchoStep):
    """Stops when it is ready."""

    def stop(self, ctx: Any, deadline: float) -> None:
        if self.sockets is not None:
            time.sleep(2)
        super().stop(ctx, deadline)


class TerminateWaits(EchoStep):
    """Terminates as it stops."""

    def terminate(self, ctx: Any) -> None:
        time.sleep(1.5)
        self.stop(ctx, time.monotonic() + 3)


class RequiresItself(EchoStep):
    """Can never start."""

    requires = ("echo",)


# ---------------------------------------------------------------------- control commands


def _made(**changes: Any) -> ControlCommand:
    return replace(COUNT_DOWN, **changes)


def _slow(context: Any, *, start: int, word: str = "go") -> Any:
    time.sleep(0.3)
    return {}


COMMANDS = {
    "TupleReply": _made(handler=lambda context, *, start, word="go": (start, word)),
    "ObjectReply": _made(handler=lambda context, *, start, word="go": object()),
    "RaisesForEverything": _made(handler=lambda context, *, start, word="go": {}[start]),
    "UndeclaredArgument": _made(handler=lambda context, *, start, word, secret: {}),
    "MissesItsDeadline": _made(handler=_slow, deadline_s=0.1),
    "NoHelp": _made(help=""),
    "NoName": _made(name="Count Down!"),
}
