"""The remote-control command `@name@`. Kernel process, loop thread: handlers must not block."""

from __future__ import annotations

from typing import Any

from kernel_worker import ControlCommand, Permission

MAX_TEXT = 200
"""What comes from outside is bounded before it is sent back."""


def answer(context: Any, text: str = "hello") -> dict[str, str]:
    """Send the text back.

    :param context: the running worker's side, see `ControlContext`.
    :raises ValueError: the text is too long; the caller gets that as the reply.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"text has {len(text)} characters, at most {MAX_TEXT} are allowed")
    return {"ok": text}


command = ControlCommand(
    name="@name@",
    handler=answer,
    permission=Permission.READ,
    arguments={"text": str},
    help="Send a text back.",
)
