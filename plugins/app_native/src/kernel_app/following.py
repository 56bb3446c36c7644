"""What follows a run: callbacks and the next of a chain, or errbacks and the rest of a chain (wire-protocol §5).

Runs in an executor, on the slot of the task, while its request is current, so that what is published here
becomes its children.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import states
from .context import Context
from .exceptions import ChordError, OperationalError, Reject
from .log import TASK_LOGGER
from .meta import address
from .representation import describe_error, printable
from .signature import publish, task_ids

if TYPE_CHECKING:
    from .app import App
    from .decoding import Embed
    from .meta import MetaCodec
    from .task import Task

log = logging.getLogger(TASK_LOGGER)

CHORD_UNSUPPORTED = "chords are not supported by this worker: the parts of this one were not counted"


class Followers:
    """Publishes and stores what follows. One per loaded application; holds no state of a run."""

    def __init__(self, app: App, codec: MetaCodec) -> None:
        self._app = app
        self._codec = codec

    def succeeded(self, task: Task[..., Any, Any], context: Context, embed: Embed, value: Any) -> None:
        """Publish the callbacks, then the next of the chain.

        :raises Reject: the broker is away: the message goes back, and is run again.
        :raises OperationalError: the same, of a task whose message is acknowledged already.
        :raises ChordError, DecodeError: a signature that cannot be published.
        """
        # Whoever waits for the first of a chain waits for the last one, too.
        options = {
            "parent_id": context.id,
            "root_id": context.root_id or context.id,
            "reply_to": context.reply_to,
        }
        try:
            for callback in embed.callbacks or ():
                self._call_back(callback, value, options)
            if embed.chain:
                publish(self._app, embed.chain[-1], (value,), {}, {**options, "chain": embed.chain[:-1] or None})
        except OperationalError as away:
            if task.acks_late:
                raise Reject(away, requeue=True) from away
            raise
        if embed.chord:
            self._refuse_chord(context.id, embed.chord)

    def _call_back(self, callback: Any, value: Any, options: Mapping[str, Any]) -> None:
        try:
            publish(self._app, callback, (value,), {}, options)
        except ChordError as refused:  # whoever waits for what it stands for would wait for ever
            self._store_failures(task_ids(callback), refused, None)
            raise

    def failed(
        self,
        headers: Mapping[str, Any],
        context: Context,
        embed: Embed,
        error: BaseException,
        text: str | None,
    ) -> None:
        """Give the rest of the chain the same failure, then run or publish the errbacks. Raises nothing."""
        if embed.chord:
            self._refuse_chord(headers["id"], embed.chord)
        if embed.chain:
            self._store_failures(task_ids(*embed.chain), error, text, context.reply_to)
        for errback in embed.errbacks or ():
            try:
                self._call_errback(errback, headers, context, error, text)
            except Exception as broken:  # one errback's fault must not keep the others from running
                log.error(
                    "Task %s[%s]: an errback cannot be run: %s",
                    printable(str(headers.get("task"))),
                    printable(headers["id"]),
                    describe_error(broken),
                    extra={"action": "errback_failed", "task_id": headers["id"]},
                )

    def _call_errback(
        self, errback: Any, headers: Mapping[str, Any], context: Context, error: BaseException, text: str | None
    ) -> None:
        task = self._app.tasks.get(str(errback.get("task"))) if isinstance(errback, Mapping) else None
        if task is not None and not errback.get("immutable"):
            args, kwargs = errback.get("args") or (), errback.get("kwargs") or {}
            if task.takes_failure(args, kwargs):
                self._app.coroutines.call(task, (context, error, text, *args), kwargs)
                return
        options = {"parent_id": headers["id"], "root_id": headers.get("root_id") or headers["id"]}
        publish(self._app, errback, (headers["id"],), {}, options)

    def _refuse_chord(self, task_id: str, chord: Mapping[str, Any]) -> None:
        # Whoever waits for the chord's body would wait for ever: tell them.
        log.error(
            "Task %s is part of a chord: %s",
            printable(task_id),
            CHORD_UNSUPPORTED,
            extra={"action": "chord_refused", "task_id": task_id},
        )
        self._store_failures(task_ids(chord), ChordError(CHORD_UNSUPPORTED), None)

    def _store_failures(
        self, ids: list[str], error: BaseException, text: str | None, reply_to: str | None = None
    ) -> None:
        if not self._app.connections.has_results:
            return
        made = [self._codec.other(task_id, states.FAILURE, error, traceback=text) for task_id in ids]
        for state in made:
            address(state, {"reply_to": reply_to})
        try:
            self._app.connections.call_results(lambda backend: backend.store(made))
        except OperationalError as away:
            # The run itself has ended and must be reported; its own state is stored when the backend is back.
            log.error(
                "the failure of %d tasks that follow cannot be stored: %s",
                len(made),
                describe_error(away),
                extra={"action": "failures_unstored", "task_ids": ids[:20]},
            )
