"""Names of task states, as Celery spells them (task-api: results)."""

from __future__ import annotations

PENDING = "PENDING"
"""Nothing is stored: not run yet, unknown, or expired."""
RECEIVED = "RECEIVED"
STARTED = "STARTED"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
RETRY = "RETRY"
REJECTED = "REJECTED"
IGNORED = "IGNORED"

READY_STATES = frozenset({SUCCESS, FAILURE, REVOKED})
"""No other state follows."""
UNREADY_STATES = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES = frozenset({RETRY, FAILURE, REVOKED})
"""The stored result is an exception object."""
PROPAGATE_STATES = frozenset({FAILURE, REVOKED})
"""`AsyncResult.get` raises the stored exception."""
