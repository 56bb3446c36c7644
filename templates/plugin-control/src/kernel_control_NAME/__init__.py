"""The remote-control command `@name@`. Kernel process, loop thread: handlers must not block."""

from __future__ import annotations

from kernel_worker import ControlContext, Permission, control_command

MAX_TEXT = 200
"""What comes from outside is bounded before it is sent back."""


@control_command("@name@", permission=Permission.READ, args={"text": str})
def command(context: ControlContext, text: str = "hello") -> dict[str, str]:
    """Send a text back.

    :param context: the running worker's side.
    :raises ValueError: the text is too long; the caller gets that as the reply.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"text has {len(text)} characters, at most {MAX_TEXT} are allowed")
    return {"ok": text}
