"""The hooks of the executor process: where tasks run.

Plugins of the entry-point group `kernel_worker.executor`. The kernel resolves them and tells each
executor which to import, so that an executor scans no entry points. In prefork pools the modules are
imported in the fork server and the hooks run in each child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .drivers import Call
    from .executor import Executor

PROJECT = "kwx"
API = 1
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def kwx_init(executor: Executor) -> None:
    """Called in the executor after the application was imported (and after the fork), before it
    reports that it is up. May take its time: an executor is not killed for a slow start.

    An exception ends the executor; the kernel starts it again with back-off and names the hook.

    Example::

        @hookimpl
        def kwx_init(executor):
            database.connect()
    """


@hookspec
def kwx_wrap_task(task: str, call: Call) -> Call | None:
    """Wrap the call of one task. Called once per task when its call is compiled, not per message.

    :param call: what the plugin before you returned; call it inside your own.
    :return: the new call, or None to leave it.

    The folds are done by the executor, the first registered plugin being the outermost.

    Example::

        @hookimpl
        def kwx_wrap_task(task, call):
            def timed(job):
                with timer(task):
                    return call(job)

            return timed
    """


@hookspec
def kwx_exit(executor: Executor, reason: str) -> None:
    """Called before a clean exit of the executor: retired, shut down, or its parent is gone.

    Example::

        @hookimpl
        def kwx_exit(executor, reason):
            database.close()
    """
