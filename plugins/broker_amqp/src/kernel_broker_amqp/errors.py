"""What can go wrong between here and the server. Imports nothing of the kernel, because clients use it too.

ConnectionError (builtin)
├── AmqpUnavailable    no connection, no answer in time, blocked, channel closed: connect again
└── AmqpRefused        the server said no: rights, password, arguments of a queue
"""

from __future__ import annotations


class AmqpUnavailable(ConnectionError):
    """The server cannot be reached now, or the connection or channel is lost."""


class AmqpRefused(ConnectionError):
    """The server was reached and refused.

    :ivar code: AMQP's reply code, e.g. 404 NOT_FOUND, 406 PRECONDITION_FAILED.
    :ivar hint: how to mend it; "" when the text says all.
    """

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class NotRouted(AmqpRefused):
    """A mandatory message came back: no queue takes it."""
