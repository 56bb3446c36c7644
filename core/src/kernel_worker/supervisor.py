"""Keep the executors alive: start, replace with back-off, kill, retire; and tell whose job died with one.

Runs on the loop thread. Knows executors and the requests they hold, but no broker; the dispatcher gets what
comes back through `Events`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import struct
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .board import Board
from .drivers import Layout
from .errors import ExecutorError, KernelWorkerError, UsageError
from .lease import NEVER
from .loop import Loop, Timer
from .spawn import Birth, Spawner, exit_reason, hello_frame
from .succession import Succession
from .types import AppInfo, QueueSpec, TaskInfo
from .wire import Channel, ChannelClosed, Frame, FrameError, pack, pack_json

if TYPE_CHECKING:
    from .request import Request

log = logging.getLogger("kernel_worker.supervisor")

MAX_EARLY_DEATHS = 10
"""Executors that end before they were up, one after the other, before the worker gives up."""
DEAF_S = 1.0
"""How long after its connection an executor may end by itself."""
RESTART_DELAY_S = 1.0
RESTART_DELAY_MAX_S = 30.0
IDLE_DEATH_S = 2.0
"""An executor that ends sooner than this after it came up, and has run nothing, does so again and again, maybe."""
FORGIVEN_S = 60.0
"""After so long without such a death the next one is taken for the first."""


class Events(Protocol):
    """What the supervisor tells the dispatcher. Loop thread."""

    def on_up(self, executor: Handle) -> None: ...
    def on_frame(self, executor: Handle, kind: int, payload: bytes) -> None: ...
    def on_down(self, executor: Handle, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class Handle:
    """One executor, seen from the kernel."""

    key: int
    channel: Channel
    board: Board
    slots: int
    pid: int = 0
    up: bool = False
    retiring: bool = False
    blocked: bool = False
    """Its socket is full: the loop watches for room."""
    stalled: bool = False
    """It gave work back because its task runs long: gets nothing until that ends."""
    outstanding: dict[int, Request] = field(default_factory=dict)
    """Requests it holds by tag, in the order they were given: the first is the one that runs."""
    backlog_s: float = 0.0
    """Expected run time of what it holds."""
    unstored: Set[int] = frozenset()
    """Tags of those that have ended and wait for the result store: they take no slot."""
    marking: int = 0
    """Slots kept for requests that start as soon as the broker has counted them."""
    fencing: int = 0
    """Orders to leave requests alone that it has not read yet: until then it stores nothing at all."""
    doom: str = ""
    """Why the kernel killed it."""
    doomed_tag: int = 0
    """The request whose time limit killed it."""
    at_fault: bool = False
    """It was killed for what it did itself: what it ran counts as lost."""
    limit_check: Timer | None = None
    """When the dispatcher looks at its requests' time limits next."""
    limit: int = 0
    """How many tasks it may run at once now: its slots, fewer while the pool is smaller or it takes over from another."""
    index: int = 0
    """The lowest number that was free when it was made: for names of log files and process titles."""
    given: int = 0
    """Tasks it was given, without those it gave back."""
    asked_at: float = 0.0
    up_at: float = 0.0
    replaced: str = ""
    """Why another one is to take its place."""
    heir: Handle | None = None
    heir_of: Handle | None = None

    @property
    def keeps_place(self) -> bool:
        """Whether it counts as one of the pool's executors, or will as soon as the one before it has left."""
        return not self.retiring and (self.heir_of is None or self.heir_of.retiring)


class Supervisor:
    """The executors of one worker. `start_loading`, then `resize`; then they are kept at that number."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.app: AppInfo | None = None
        self.layout = Layout(0, 0)
        self.executors: dict[int, Handle] = {}
        self.events: Events | None = None
        self.failure: KernelWorkerError | None = None
        """Set when executors cannot be started at all; the worker then ends with it."""
        self.restarts = 0
        self.succession = Succession(self)
        self.most_slots = 0
        """Slots an executor is made with at least, so that the pool can grow without replacing it."""
        self.leave_s = 25.0
        """How long a retired executor may wait for the result store."""
        self._held_until = NEVER
        self._verbose = False
        self._forgotten: list[Handle] = []
        self._spawner: Spawner | None = None
        self._hello: dict[str, Any] = {}
        self._next_key = 1
        self._early_deaths = 0
        self._idle_deaths = 0
        self._idle_death_at = 0.0
        self._restart_pending = False
        self._closing = False
        loop.at_turn_end(self.flush_all)

    # -- coming up

    def start_loading(self, spawner: Spawner, hello: dict[str, Any], slots: int = 1) -> None:
        """Have the application imported; `app` or `failure` is set some turns later.

        :param slots: of the executor that does it, where no other process does.
        """
        self._spawner = spawner
        self._hello = hello
        spawner.start()
        if not spawner.preloads:
            self.layout = Layout(1, slots)
            self._add()

    def resize(self, layout: Layout) -> None:
        """Grow or shrink to a layout; executors that are too many are retired, never interrupted."""
        self.layout = layout
        self._refill()
        active = [h for h in self.executors.values() if h.keeps_place]
        # Those that run nothing first, and of these the youngest.
        idlest = sorted(active, key=lambda h: (len(h.outstanding), -h.key))
        for handle in idlest[: max(0, len(active) - layout.processes)]:
            self.succession.dismiss(handle)
        for handle in active:
            if layout.slots > handle.slots:
                self.succession.replace(handle, f"it has {handle.slots} slots, the pool {layout.slots} now")
            elif not handle.retiring and handle.heir_of is None:
                handle.limit = layout.slots

    @property
    def up_count(self) -> int:
        """Executors that are ready for requests."""
        return sum(handle.up and handle.keeps_place for handle in self.executors.values())

    def _fill(self) -> None:
        while not self._closing and sum(h.keeps_place for h in self.executors.values()) < self.layout.processes:
            self._add()

    def add_heir(self, before: Handle) -> Handle | None:
        """An executor to take the place of another one, if it can be started now."""
        if self._closing or self._restart_pending:
            return None
        try:
            heir = self._add()
        except OSError as error:
            log.warning("no successor for executor %d: %s", before.pid, error, extra={"action": "no_successor"})
            return None
        heir.heir_of, heir.limit = before, 0
        return heir

    def _add(self) -> Handle:
        assert self._spawner is not None
        with contextlib.ExitStack() as undo:  # where the system refuses, no exit will be reported that takes it away
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            ours.setblocking(False)
            slots = max(self.layout.slots, self.most_slots)
            board = Board.create(slots)
            undo.callback(board.close)
            board.hold_until(self._held_until)
            handle = Handle(self._next_key, Channel(ours), board, slots, limit=self.layout.slots)
            handle.index = self._free_index()
            handle.asked_at = time.monotonic()
            self._next_key += 1
            self.executors[handle.key] = handle
            undo.callback(self.executors.pop, handle.key)
            self.loop.add_reader(ours, self._read, handle)
            undo.callback(self.loop.remove, ours)
            number = handle.index + 1 if self._spawner.can_kill else 0
            if not self._spawner.preloads:
                handle.channel.queue(hello_frame({**self._hello, "index": number}))
            self._spawner.spawn(Birth(handle.key, theirs, board, handle.slots, number))
            undo.pop_all()
        return handle

    def _free_index(self) -> int:
        taken = {handle.index for handle in self.executors.values()}
        return next(index for index in range(len(taken) + 1) if index not in taken)

    # -- spawner's events

    def on_loaded(self, info: dict[str, Any]) -> None:
        """LOADED: remember the application; the first report counts."""
        if self.app is None:
            tasks = {name: TaskInfo(**task) for name, task in info.pop("tasks").items()}
            queues = tuple(QueueSpec(**queue) for queue in info.pop("queues"))
            self.app = AppInfo(tasks=tasks, queues=queues, **info)

    def on_failed(self, failure: dict[str, Any]) -> None:
        """FAILED: the application cannot be loaded. Fatal at start; later one early death among others."""
        text = failure["text"]
        if self.failure is not None:
            return  # the first failure is the cause, what follows (the end of the fork server) its consequence
        if self.app is None:
            hint = "" if failure["kind"] == "usage" else "set KW_TRACEBACK=1 to see the whole traceback"
            error = UsageError(text, hint=hint) if failure["kind"] == "usage" else ExecutorError(text, hint=hint)
            error.details = failure.get("details", "")
            self.failure = error
        else:
            log.error("executor failed to start: %s", text, extra={"action": "executor_failed"})

    def on_born(self, key: int, pid: int) -> None:
        handle = self.executors.get(key)
        if handle is not None:
            handle.pid = pid

    def on_exited(self, key: int, status: int) -> None:
        """The process has ended: account for what it held, and fill its place."""
        handle = self.executors.pop(key, None)
        if handle is None:
            return
        self._drain(handle)
        self.succession.gone(handle)
        self.loop.remove(handle.channel.sock)
        handle.channel.close()
        reason = handle.doom or ("retired" if handle.retiring and status == 0 else exit_reason(status))
        if handle.up:
            level = logging.INFO if reason == "retired" or self._closing else logging.WARNING
            log.log(
                level, "executor %d ended: %s", handle.pid, reason, extra={"action": "executor_down", "pid": handle.pid}
            )
        ran = any(handle.board.last_started(slot) for slot in range(handle.slots))
        try:
            if self.events is not None:
                self.events.on_down(handle, reason)
        finally:  # a plugin that hears of it may raise; the executor is replaced all the same
            handle.board.close()
            self._replace(handle, reason, ran)

    def _replace(self, handle: Handle, reason: str, ran: bool) -> None:
        if self._closing or self.failure is not None or self._restart_pending:
            return
        if not handle.up and not handle.retiring:
            self._back_off(reason)
            return
        self.restarts += 1
        is_young = time.monotonic() - handle.up_at < IDLE_DEATH_S
        delay = 0.0 if ran or handle.retiring or handle.doom or not is_young else self._idle_death()
        if not delay:
            self._refill()
            return
        log.error(
            "executors end as soon as they are up, without running anything: %s; next try in %.0f s",
            reason,
            delay,
            extra={"action": "executor_idle_death"},
        )
        self._restart_later(delay)

    def _idle_death(self) -> float:
        """An executor came up and died of nothing: seconds until the next one. The first time may be an accident."""
        now = time.monotonic()
        if now - self._idle_death_at > FORGIVEN_S:
            self._idle_deaths = 0
        self._idle_death_at = now
        self._idle_deaths += 1
        if self._idle_deaths == 1:
            return 0.0
        return min(RESTART_DELAY_S * 2.0 ** min(self._idle_deaths - 2, 10), RESTART_DELAY_MAX_S)

    def _refill(self) -> None:
        """Fill again. Where the system refuses (processes, memory, descriptors), later: nobody else would ask."""
        try:
            self._fill()
        except OSError as error:
            self._back_off(f"it could not be started: {error}")

    def _back_off(self, reason: str) -> None:
        self._early_deaths += 1
        if self._early_deaths >= MAX_EARLY_DEATHS:
            self.failure = ExecutorError(
                f"executors ended before they were up, {self._early_deaths} times in a row; the last: {reason}",
                hint="the log above says what failed: the application's import or an init hook",
            )
            return
        delay = min(RESTART_DELAY_S * 2 ** (self._early_deaths - 1), RESTART_DELAY_MAX_S)
        log.error(
            "executor ended before it was up: %s; next try in %.0f s",
            reason,
            delay,
            extra={"action": "executor_early_death"},
        )
        self._restart_later(delay)

    def _restart_later(self, delay_s: float) -> None:
        self._restart_pending = True
        self.loop.call_later(delay_s, self._restart)

    def _restart(self) -> None:
        self._restart_pending = False
        self._refill()

    # -- frames

    def _read(self, handle: Handle) -> None:
        try:
            self._receive(handle)
        except ChannelClosed:
            # Its exit is reported by the spawner, with the reason; stop spinning on the end of file.
            self.loop.remove(handle.channel.sock)
            self.loop.call_later(DEAF_S, self._kill_deaf, handle)
        except FrameError as error:
            log.warning("executor %d sent nonsense", handle.pid, exc_info=error, extra={"action": "frame_error"})
            self.loop.remove(handle.channel.sock)
            self.kill(handle, f"it sent nonsense: {error}", at_fault=True)

    def _receive(self, handle: Handle) -> bool:
        """Take the frames that are there now; False when there were none.

        :raises ChannelClosed: it is gone.
        :raises FrameError: what came is not what executors send: a task wrote to a descriptor that is not its own.
        """
        frames = handle.channel.receive()
        try:
            for kind, payload in frames:
                self._frame(handle, kind, payload)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise FrameError(f"{type(error).__name__} in a frame of kind {kind}") from error
        return bool(frames)

    def _kill_deaf(self, handle: Handle) -> None:
        """A task may close descriptors that are not its own: such an executor hears nothing any more."""
        if self.executors.get(handle.key) is handle:
            self.kill(handle, "it closed its connection to the worker", at_fault=True)

    def _drain(self, handle: Handle) -> None:
        """Read what a dead executor had still reported: it need not be done again."""
        try:
            while self._receive(handle):
                pass
        except (ChannelClosed, FrameError, OSError):
            pass

    def _frame(self, handle: Handle, kind: int, payload: bytes) -> None:
        if kind == Frame.LOADED:
            self.on_loaded(json.loads(payload))
        elif kind == Frame.FAILED:
            self.on_failed(json.loads(payload))
        elif kind == Frame.UP:
            handle.up = True
            handle.pid = json.loads(payload)["pid"]
            self._early_deaths = 0
            log.debug("executor %d is up", handle.pid, extra={"action": "executor_up", "pid": handle.pid})
            self.succession.up(handle)
            if self._verbose:
                handle.channel.queue(pack_json(Frame.VERBOSE, True))
            if self.events is not None:
                self.events.on_up(handle)
        elif self.events is not None:
            self.events.on_frame(handle, kind, payload)

    def flush_all(self) -> None:
        """Send what is queued for all executors; also at the end of each turn of the loop."""
        for handle in self.executors.values():
            self.flush(handle)

    def flush(self, handle: Handle) -> None:
        """Send what is queued for one executor."""
        channel = handle.channel
        if not channel.out_bytes:
            return
        try:
            blocked = not channel.flush()
            if blocked != handle.blocked:
                handle.blocked = blocked
                self.loop.set_writer(channel.sock, self.flush if blocked else None, handle)
        except (ChannelClosed, KeyError):
            pass  # it is dead; its exit is about to be reported

    # -- ending

    def kill(self, handle: Handle, reason: str, tag: int = 0, *, at_fault: bool = False) -> None:
        """Kill one executor; `on_down` follows with `reason`.

        :param tag: the request whose time limit it is.
        :param at_fault: the executor itself did what it is killed for.
        """
        assert self._spawner is not None
        handle.doom, handle.doomed_tag, handle.at_fault = reason, tag, at_fault
        self._spawner.kill(handle.key, signal.SIGKILL)

    def forget(self, handle: Handle) -> None:
        """Give up an executor that cannot be killed; what it held is accounted for as if it had been."""
        handle.doom = handle.doom or "the grace period is over"
        self.executors.pop(handle.key, None)
        # Kept: with its end of the channel closed, it would end this process before its message is settled.
        self._forgotten.append(handle)
        self.loop.remove(handle.channel.sock)
        if self.events is not None:
            self.events.on_down(handle, handle.doom)

    def retire(self, handle: Handle) -> None:
        """Let one executor finish what it holds and exit; another one takes its place if it is needed."""
        if not handle.retiring:
            handle.retiring = True
            handle.limit = 0
            handle.channel.queue(pack_json(Frame.RETIRE, self.leave_s))

    def recall(self) -> None:
        """Ask every executor to give back what it has not started."""
        for handle in self.executors.values():
            if handle.up:
                handle.channel.queue(pack(Frame.RECALL))

    def notify(self, event: str) -> None:
        """Have one executor tell the application of an event of the worker (`LoadedApp.notify`)."""
        up = [handle for handle in self.executors.values() if handle.up and not handle.retiring]
        if up:
            min(up, key=lambda handle: handle.key).channel.queue(pack_json(Frame.NOTIFY, event))

    def set_verbose(self, verbose: bool) -> None:
        """Whether outcomes shall carry what was returned or raised (`Outcome.shown`), from executors to come, too."""
        if verbose != self._verbose:
            self._verbose = verbose
            for handle in self.executors.values():
                if handle.up:
                    handle.channel.queue(pack_json(Frame.VERBOSE, verbose))

    def cancel(self, handle: Handle, tag: int, error: str, value: float) -> None:
        """Have an exception raised inside one running request."""
        handle.channel.queue(pack_json(Frame.CANCEL, {"tag": tag, "error": error, "value": value}))

    def fence(self, handle: Handle, tags: Sequence[int]) -> None:
        """Have these requests neither begun nor stored, and what runs of them cancelled."""
        handle.fencing += 1
        handle.channel.queue(pack_json(Frame.FENCE, list(tags)))

    def fenced(self, handle: Handle) -> None:
        """It knows what it must not store: all else it may."""
        handle.fencing -= 1
        if not handle.fencing:
            handle.board.hold_until(self._held_until)

    def hold_until(self, held_until: float) -> None:
        """The lease of this worker was renewed; executors store nothing when it is over."""
        self._held_until = held_until
        for handle in self.executors.values():
            if not handle.fencing:
                handle.board.hold_until(held_until)

    def close(self) -> None:
        """Replace nobody any more."""
        self._closing = True

    def stop(self, deadline: float) -> None:
        """Retire all; kill what is left at the monotonic deadline."""
        self._closing = True
        if self._spawner is None:
            return
        for handle in list(self.executors.values()):
            if handle.up:
                self.retire(handle)
            elif self._spawner.can_kill:
                self._spawner.kill(handle.key, signal.SIGKILL)
            else:
                self.forget(handle)  # it still imports the application, which may take for ever
        if not self.loop.run_until(lambda: not self.executors, deadline):
            for handle in list(self.executors.values()):
                self.kill(handle, "killed: the grace period is over")
            self.loop.run_until(lambda: not self.executors, time.monotonic() + 2.0)
        self._spawner.stop()
