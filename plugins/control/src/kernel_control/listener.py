"""The thread that listens for commands on a connection of its own, and the loop that carries them out.

The thread reads, checks whom a message is meant for, and sends the replies; the loop thread runs the handlers. What goes
wrong with the connection ends in this thread: it connects again, for ever, and consumption never notices.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kernel_worker import BrokerUnavailable, ControlContext, KernelWorkerError, Permission
from kernel_worker.control import NO_REPLY, Pending

from .pidbox import Bucket, Call, encode_reply, read

if TYPE_CHECKING:
    from kernel_worker import Mailbox, StepContext

log = logging.getLogger("kernel_control")

RECEIVE_S = 1.0
COMMANDS_PER_S = 500.0
"""More are refused; their senders are told, as many in a second."""
MAX_WAITING = 200
"""Commands that wait for the loop at most."""
PER_TURN = 16
"""Commands carried out before others have the loop again."""
BACKOFF_S = (0.2, 10.0)
BUSY = "too many commands: try again in a second"


class Listener:
    """The thread and its mailbox. `start` and `stop` on the loop thread."""

    def __init__(self, ctx: StepContext, make: Callable[[], Mailbox], name: str) -> None:
        self.is_listening = False
        self._loop = ctx.loop
        self._context = ControlContext(ctx.worker)
        self._table = ctx.worker.control
        self._make = make
        self._replies = f"reply.{name}.pidbox"
        self._mailbox: Mailbox | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kw-control", daemon=True)
        self._waiting: deque[Call] = deque()
        self._outbox: deque[tuple[str, Mapping[str, Any], Any]] = deque(maxlen=2 * MAX_WAITING)
        self._bucket = Bucket(COMMANDS_PER_S)
        self._refusals = Bucket(COMMANDS_PER_S)
        self._is_posted = False
        self._told = ""

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to listen has failed."""
        return bool(self._told) and not self.is_listening

    def start(self) -> None:
        """Begin to connect."""
        if not self._stopping.is_set():
            self._thread.start()

    def stop(self, deadline: float) -> None:
        """End the thread; what is answered by then is sent."""
        self._stopping.set()
        mailbox = self._mailbox
        if mailbox is not None:
            mailbox.interrupt()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    # ------------------------------------------------------------------ its own thread

    def _run(self) -> None:
        delay = BACKOFF_S[0]
        while not self._stopping.is_set():
            try:
                self._listen()
                delay = BACKOFF_S[0]
            except (ConnectionError, BrokerUnavailable) as error:
                if self.is_listening:
                    delay = BACKOFF_S[0]
                self._tell(str(error))
            except Exception as error:  # a driver's bug must neither end this thread nor reach the loop
                log.exception("remote control failed", extra={"action": "control_failed"})
                self._tell(type(error).__name__)
            self.is_listening = False
            self._close()
            self._stopping.wait(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, BACKOFF_S[1])

    def _listen(self) -> None:
        mailbox = self._mailbox = self._make()
        mailbox.listen(self._context.node)
        self.is_listening, self._told = True, ""
        self._loop.post(self._is_up)
        while not self._stopping.is_set():
            for headers, content_type, body in mailbox.receive(RECEIVE_S):
                self._context.clock.adjust(headers.get("clock"))
                if content_type != "application/json":
                    log.warning("a command of type %.40r was dropped", content_type, extra={"action": "control_type"})
                elif (call := read(self._context.node, self._replies, body)) is not None:
                    self._take(call)
            self._send(mailbox)
        self._send(mailbox)

    def _take(self, call: Call) -> None:
        if call.error:
            self._refuse(call, call.error)
        elif len(self._waiting) >= MAX_WAITING or not self._bucket.take():
            self._refuse(call, BUSY)
        else:
            self._waiting.append(call)
            if not self._is_posted:
                self._is_posted = True
                self._loop.post(self._work)

    def _refuse(self, call: Call, error: str) -> None:
        if self._refusals.take():
            self._answer(call, {"error": error})

    def _answer(self, call: Call, reply: Any) -> None:
        if call.box:
            self._outbox.append((call.box, {"ticket": call.ticket, "clock": self._context.clock.forward()}, reply))

    def _send(self, mailbox: Mailbox) -> None:
        while self._outbox:
            letters: list[tuple[str, Mapping[str, Any], bytes]] = []
            while self._outbox and len(letters) < PER_TURN:
                box, headers, reply = self._outbox.popleft()
                letters.append((box, headers, encode_reply(self._context.node, reply)))
            mailbox.reply(letters)

    def _close(self) -> None:
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is not None:
            mailbox.close()

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:  # the same trouble is told once, not at every attempt
            self._told = trouble
            log.warning("remote control is away: %s; trying again", trouble, extra={"action": "control_down"})

    # ------------------------------------------------------------------ loop thread

    def _is_up(self) -> None:
        log.info("remote control listens as %s", self._context.node, extra={"action": "control_up"})

    def _work(self) -> None:
        """Carry out some of the commands that wait; the rest in the next turn, behind everybody else's work."""
        self._is_posted = False
        for _ in range(min(PER_TURN, len(self._waiting))):
            call = self._waiting.popleft()
            self._audit(call)
            try:
                reply = self._table.call(self._context, call.method, call.arguments)
            except KernelWorkerError as error:  # a command may ask hooks, whose errors are these
                reply = {"error": str(error)}
            if isinstance(reply, Pending):
                reply.then(partial(self._answer_later, call))
            elif reply is not NO_REPLY:
                self._answer(call, reply)
        if self._waiting:
            self._is_posted = True
            self._loop.post(self._work)
        mailbox = self._mailbox
        if mailbox is not None and self._outbox:
            mailbox.interrupt()

    def _answer_later(self, call: Call, reply: Any) -> None:
        self._answer(call, reply)
        mailbox = self._mailbox
        if mailbox is not None:
            mailbox.interrupt()

    def _audit(self, call: Call) -> None:
        command = self._table.commands.get(call.method)
        if command is not None and command.permission is not Permission.READ:
            log.info("command %s %.200r", call.method, dict(call.arguments), extra={"action": "control_command"})
