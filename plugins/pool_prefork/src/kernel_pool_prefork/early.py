"""Start the fork server's interpreter. Kernel process; imports next to nothing, because `kw run` calls it first of
all (`kernel_worker.early`)."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import NamedTuple


class Interpreter(NamedTuple):
    """A fork server that waits for HELLO on the other end of `sock`."""

    process: subprocess.Popen[bytes]
    sock: socket.socket

    def close(self) -> None:
        """End it, if that has not happened: another pool was chosen, or no worker came up."""
        self.sock.close()
        self.process.kill()
        self.process.wait(5)


def start_interpreter(app: str = "") -> Interpreter:
    """Start a fork server; it waits for HELLO on the socket, and ends when the socket is closed.

    :param app: an application (module[:attribute]) to import while it waits.
    """
    ours, theirs = socket.socketpair()
    code = "from kernel_pool_prefork.forkserver import process_main; process_main()"
    with theirs:
        process = subprocess.Popen(
            # -P: the working directory must not shadow the modules of the kernel; it is added later.
            [sys.executable, "-P", "-c", code, str(theirs.fileno()), app],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
    return Interpreter(process, ours)
