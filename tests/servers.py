"""Private servers for tests: real ones, on free loopback ports, in folders of their own, stopped afterwards.

Only processes started here are ever signalled, by their id. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_worker.testing import eventually

INSTALL_HINT = "redis-server is not on PATH: run `make test`, which installs it, or install the package redis-server"


class RedisServer:
    """One redis-server. Without persistence unless `arguments` say otherwise, e.g. ("--appendonly", "yes").

    :param folder: for its data, its log and its Unix socket; kept over restarts.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id.

        :raises RuntimeError: it is not running.
        """
        if self._process is None:
            raise RuntimeError("this redis-server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(self.folder)]
        options += ["--unixsocket", str(self.folder / "redis.sock"), "--logfile", str(self.folder / "redis.log")]
        self._process = subprocess.Popen(
            [redis_program(), *options, *self.arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        eventually(self._answers, within_s=15, message=f"an answer of redis-server on port {self.port}")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"redis-server ended: {(self.folder / 'redis.log').read_text()[-500:]}")
        # a server with a password answers, too
        return self.command("PING").startswith(("+PONG", "-NOAUTH"))

    def command(self, text: str, *, timeout_s: float = 5.0) -> str:
        """Send one inline command and return the first line of the answer.

        :raises TimeoutError: no answer in time.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(text.encode() + b"\r\n")
            return connection.makefile("rb").readline().decode().rstrip()

    def flush(self) -> None:
        """Empty all databases."""
        answer = self.command("FLUSHALL")
        assert answer == "+OK", answer

    def stop(self) -> None:
        """Ask it to end (it saves what it is configured to save) and wait. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once. Idempotent."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def restart(self) -> None:
        """End it and start it again on the same port; data survives only with persistence."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)  # the signal alone may still let it answer
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


def redis_program() -> str:
    """Path of redis-server; without one the test is skipped, in CI it fails."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            pytest.fail(INSTALL_HINT, pytrace=False)
        pytest.skip(INSTALL_HINT)
    return program


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
