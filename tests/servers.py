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

INSTALL_HINT = "{0} is not on PATH: run `make test`, which installs it, or install the package {0}"


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


class RabbitServer:
    """One RabbitMQ node with a name, ports and folders of its own. A start takes about five seconds.

    :param folder: for its data and its log; kept over restarts.
    :ivar tls_port: speaks TLS, with a certificate for localhost which `authority` vouches for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.tls_port = free_port()
        self.authority = folder / "server.pem"
        self._epmd_port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The vhost "/"."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start and wait until it lets clients in."""
        # The wrapper on PATH changes the user, and executed by its resolved path it would call itself without
        # end: the script beside what the link points to is the server.
        server = Path(program("rabbitmq-server")).resolve().with_name("rabbitmq-server")
        epmd = program("epmd")
        environment, epmd_port = self._environment(), str(self._epmd_port)
        with (self.folder / "output").open("ab") as output:
            for command in ([epmd, "-address", "127.0.0.1", "-port", epmd_port], [str(server)]):
                self._processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        eventually(self._answers, within_s=50, message=f"an answer of rabbitmq-server on port {self.port}")

    def _environment(self) -> dict[str, str]:
        for name in ("home", "log", "mnesia"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text(self._tls_settings())
        return {
            **os.environ,
            "HOME": str(self.folder / "home"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"kwtest{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": str(self.folder / "log" / "rabbitmq.log"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _answers(self) -> bool:
        if self._processes[-1].poll() is not None:
            raise RuntimeError(f"rabbitmq-server ended: {(self.folder / 'output').read_text()[-500:]}")
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))

    def _tls_settings(self) -> str:
        if shutil.which("openssl") is None:  # tests of TLS ask for it, see `program`
            return ""
        if not self.authority.exists():
            self._make_certificate()
        return (
            f"listeners.ssl.default = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.certfile = {self.authority}\n"
            f"ssl_options.keyfile = {self.folder / 'server.key'}\n"
            "ssl_options.verify = verify_none\n"
        )

    def _make_certificate(self) -> None:
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(self.folder / "server.key"), "-out", str(self.authority)]
        command = [program("openssl"), "req", "-x509", *key, *files, *subject]
        subprocess.run(command, check=True, capture_output=True)

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node; its output. Takes a few seconds.

        :raises RuntimeError: it failed.
        """
        tool = Path(program("rabbitmqctl")).resolve().with_name("rabbitmqctl")
        run = subprocess.run(
            [str(tool), "--quiet", *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if run.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {run.stdout}{run.stderr}")
        return run.stdout

    def kill(self) -> None:
        """End it at once. Idempotent."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the processes that were started here, and their children: each has a process group of its own."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        processes, self._processes = self._processes, []
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def redis_program() -> str:
    """Path of redis-server; see `program`."""
    return program("redis-server")


def program(name: str) -> str:
    """Path of a server; without one the test is skipped, in CI it fails."""
    found = shutil.which(name)
    if found is None:
        hint = INSTALL_HINT.format(name)
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            pytest.fail(hint, pytrace=False)
        pytest.skip(hint)
    return found


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
