"""What can go wrong, with an exit code and a hint how to mend it.

    KernelWorkerError
    ├── UsageError 2            the command line is wrong
    ├── ConfigError 78          a setting is wrong
    ├── PluginError 78          a plugin cannot be loaded or broke a rule
    ├── StartError 70           a boot step failed; everything was rolled back
    ├── ExecutorError 70        executors cannot be started
    ├── PidfileError 73         another worker holds the pidfile
    ├── BrokerUnavailable 69    no connection; ends the process only while it starts
    └── BrokerRefused 69        the broker answered, and said no

Imports nothing of the kernel.
"""

from __future__ import annotations


class KernelWorkerError(Exception):
    """Base of all errors that are shown to a user without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = ""
        """A traceback of the user's own code, shown when KW_TRACEBACK is set."""

    def __str__(self) -> str:
        return f"{self.message}\n    {self.hint}" if self.hint else self.message


class UsageError(KernelWorkerError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = 2


class ConfigError(KernelWorkerError):
    """A setting has an unknown name or an impossible value."""

    exit_code = 78


class PluginError(KernelWorkerError):
    """A plugin failed to import, claims another API version, or raised in a hook."""

    exit_code = 78


class StartError(KernelWorkerError):
    """A boot step failed to start. `step` and `plugin` say which; the cause is chained."""

    exit_code = 70

    def __init__(self, message: str, *, step: str = "", plugin: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.plugin = plugin


class StartInterrupted(KernelWorkerError):
    """A signal asked to stop while the worker was starting."""

    exit_code = 0


class ExecutorError(KernelWorkerError):
    """Executors die before they are up, again and again; or the application cannot be loaded."""

    exit_code = 70


class PidfileError(KernelWorkerError):
    """The pidfile is held by a living process or cannot be written."""

    exit_code = 73


class BrokerUnavailable(KernelWorkerError):
    """The broker cannot be reached now. The kernel reconnects with back-off.

    `retry_after`: seconds the broker asked to wait, or None.
    """

    exit_code = 69

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class BrokerRefused(KernelWorkerError):
    """The broker was reached and refused: wrong password, missing rights, unsupported version.

    At first start it is shown at once and retried like any outage; credentials may be mended
    while the worker waits.
    """

    exit_code = 69
