"""Ask the other workers what they have revoked: Celery's mingle. Celery's own workers answer, too.

On a thread of its own while this worker already works, so it delays nothing; once, after the start. Where the broker
keeps revokes, what comes this way are only those of Celery's workers.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernel_worker.worker import Worker

log = logging.getLogger(__name__)

WAIT_S = 1.0
"""How long answers are waited for after the last one."""
TELL_IDS = 10_000
"""Newest ids that are told to the others."""


def mingle(worker: Worker, revoked: list[str], heard: Callable[[list[str], Any], None]) -> threading.Thread | None:
    """Begin to ask. Loop thread.

    :param heard: called on the thread with each peer's ids and its clock.
    :return: the thread; None where there is no remote control.
    """
    settings = worker.app.settings
    url = worker.broker_url.reveal().split(";")[0]
    scheme = url.partition("://")[0].lower()
    entry = worker.selection.mailboxes.get(scheme)
    if entry is None or settings.get("worker_enable_remote_control") is False:
        return None
    exchange = str(settings.get("control_exchange") or "celery")
    options = settings.get("broker_transport_options") or {}
    box = str(uuid.uuid4())
    question = {
        "method": "hello",
        "arguments": {"from_node": worker.node, "revoked": revoked[-TELL_IDS:]},
        "destination": None,
        "pattern": None,
        "matcher": None,
        "ticket": box,
        "reply_to": {"exchange": f"reply.{exchange}.pidbox", "routing_key": box},
    }

    def ask() -> None:
        module, _, attribute = entry.target.partition(":")
        try:
            mailbox: Any = getattr(importlib.import_module(module), attribute)(url, options, exchange)
            try:
                mailbox.expect(box)
                headers = {"clock": worker.clock.forward(), "expires": time.time() + WAIT_S}
                count = mailbox.broadcast(headers, json.dumps(question).encode())
                _gather(mailbox, worker.node, count, heard)
            finally:
                mailbox.close()
        except Exception as error:  # the boundary of the thread: it is only a courtesy
            log.debug("nobody could be asked for revokes: %s", error, extra={"action": "mingle_failed"})

    thread = threading.Thread(target=ask, name="kw-mingle", daemon=True)
    thread.start()
    return thread


def _gather(mailbox: Any, node: str, count: int | None, heard: Callable[[list[str], Any], None]) -> None:
    """Take answers until everybody has answered, where the broker tells how many there are, or nobody does any more."""
    answered = 0
    deadline = time.monotonic() + WAIT_S
    while (left_s := deadline - time.monotonic()) > 0 and (count is None or answered < count):
        for _, _, body in mailbox.receive(left_s):
            answered += 1
            deadline = time.monotonic() + WAIT_S
            for ids, clock in _answers(body, node):
                heard(ids, clock)


def _answers(body: bytes, node: str) -> list[tuple[list[str], Any]]:
    """What peers say; [] for what makes no sense. Untrusted input. Older workers send a mapping of ids."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, dict):
        return []
    answers = []
    for peer, reply in found.items():
        if peer != node and isinstance(reply, dict) and isinstance(reply.get("revoked"), (list, dict)):
            log.info("sync with %s", ascii(peer[:120])[1:-1], extra={"action": "mingle"})
            answers.append(([each for each in reply["revoked"] if isinstance(each, str)], reply.get("clock")))
    return answers
