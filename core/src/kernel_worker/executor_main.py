"""The life of an executor's process: HELLO, the application, serving, the end.

Runs on the main thread of an executor process (or, for inline pools, of the worker).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .board import Board
from .drivers import Call, LoadedApp, Runtime
from .executor import Executor
from .loading import failed_frame, import_string, load_app, loaded_frame
from .logs import configure_logging, take_log_of_its_own
from .wire import HEAD, Channel, ChannelClosed, Frame, pack_json


def become_executor(channel: Channel, board: Board, runtime: Runtime, app: LoadedApp, hello: dict[str, Any]) -> str:
    """Serve until retired: run the hooks, report UP, run jobs. Main thread.

    :return: why it ended.
    """
    take_log_of_its_own(hello["log"], hello.get("index", 0))
    hooks = _hooks(hello["plugins"])
    executor = Executor(channel, board, runtime, app)
    app.run_coroutine = runtime.run_coroutine
    try:
        app.setup(hello["node"], _wrapper(hooks))
        if hooks is not None:
            hooks.hook.kwx_init(executor=executor)
    except BaseException as error:
        channel.send(failed_frame(error))
        raise
    executor.minder.start()
    channel.send(pack_json(Frame.UP, {"pid": os.getpid()}))
    try:
        runtime.serve(executor)
    except ChannelClosed:
        executor.exit_reason = "the kernel process is gone"
    finally:
        executor.minder.stop()
    app.teardown(executor.exit_reason)
    if hooks is not None:
        hooks.hook.kwx_exit(executor=executor, reason=executor.exit_reason)
    return executor.exit_reason


def _hooks(plugins: Sequence[str]) -> Any:
    if not plugins:
        return None  # pluggy is not imported for nothing: it would be paid in every child
    import pluggy

    from . import hookspecs_executor

    manager = pluggy.PluginManager(hookspecs_executor.PROJECT)
    manager.add_hookspecs(hookspecs_executor)
    for plugin in plugins:
        manager.register(import_string(plugin), plugin)
    manager.check_pending()
    return manager


def _wrapper(hooks: Any) -> Callable[[str, Call], Call]:
    if hooks is None:
        return lambda task, call: call

    def wrap(task: str, call: Call) -> Call:
        for implementation in reversed(hooks.hook.kwx_wrap_task.get_hookimpls()):  # first registered = outermost
            call = implementation.function(task=task, call=call) or call
        return call

    return wrap


def ignore_group_signals() -> None:
    """Signals for the whole process group are the kernel process's business: it tells executors what to do.

    A handler that does nothing, not SIG_IGN: ignored signals would stay ignored in programs that tasks start.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)


def read_hello(channel: Channel) -> dict[str, Any]:
    """Wait for the first frame, HELLO. Reads no byte of what comes behind it: with a fork server's first FORK come
    descriptors, which a reader that does not ask for them would lose.

    :raises ChannelClosed: the kernel is gone.
    """
    length, _ = HEAD.unpack(_read_exactly(channel.sock, HEAD.size))
    hello: dict[str, Any] = json.loads(_read_exactly(channel.sock, length))
    return hello


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise ChannelClosed("end of file")
    return data


def main(channel: Channel, board: Board) -> int:
    """An exec'ed executor's whole life: HELLO, application, LOADED, serve. Main thread of the process."""
    hello = read_hello(channel)
    runtime: Runtime = import_string(hello["runtime"])()
    try:
        runtime.prepare()
        configure_logging(hello["log"])
        app = load_app(hello)
    except BaseException as error:
        channel.send(failed_frame(error))
        return 1
    # What is loaded stays. And as many requests as there are slots are alive at once: who looks for garbage among them
    # after each 700 objects finds none.
    gc.freeze()
    young, *older = gc.get_threshold()
    gc.set_threshold(young and max(young, 10 * board.slots), *older)
    channel.send(loaded_frame(app))
    become_executor(channel, board, runtime, app, hello)
    return 0


def die_with_parent() -> None:
    """Ask the system to kill this process when its parent's thread ends. Linux; elsewhere the end of the
    channel does it, which a task that holds the interpreter can delay."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)  # it died in between


def process_main() -> None:
    """Entry of an exec'ed executor: descriptors of channel and board and the number of slots are in argv."""
    ignore_group_signals()
    die_with_parent()
    channel_fd, board_fd, slots = map(int, sys.argv[1:4])
    code = 1
    try:
        code = main(Channel(socket.socket(fileno=channel_fd)), Board(board_fd, slots))
    except ChannelClosed:
        pass
    finally:
        flush_output()
        os._exit(code)  # threads that tasks left behind must not keep the process


def flush_output() -> None:
    """Write out what was printed, before a fork or the end of the process. That nobody can read it any more is no
    reason to fail, now or when the interpreter flushes for the last time (it would exit with 120)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (ValueError, AttributeError):  # a task closed it; or there is none
            pass
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
