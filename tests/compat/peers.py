"""The processes of these tests: clients and Celery workers. `kw` itself is `kernel_worker.testing.WorkerProcess`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from kernel_worker.testing import WorkerProcess, eventually

from . import clients

REPOSITORY = Path(__file__).parents[2]
ANSWER_S = 50.0


class ClientProcess:
    """A client application in a process that has nothing of the workers: `client.do(clients.call, "compat.add", …)`.

    :param kind: "celery" or "kw": the library it uses.
    """

    def __init__(self, kind: str, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=clients.serve, args=(theirs, kind, url), daemon=True)
        self._process.start()
        theirs.close()

    def do(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a function there with an application; what it returns.

        :param settings: of the application, in addition to its URLs.
        :raises AssertionError: it raised, or did not answer; with its traceback.
        """
        self._connection.send((function, kwargs.pop("settings", {}), args, kwargs))
        assert self._connection.poll(ANSWER_S), f"no answer of the client to {function.__name__}"
        is_good, value = self._connection.recv()
        assert is_good, f"in the client's process:\n{value}"
        return value

    def stop(self) -> None:
        """End it. Idempotent."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def environment(url: str, queue: str, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What the applications of the workers read."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {
        "PYTHONPATH": path,
        "COMPAT_URL": url,
        "COMPAT_QUEUE": queue,
        "COMPAT_SETTINGS": json.dumps(dict(settings or {})),
    }


def start_kw(
    folder: Path, url: str, queues: str, *arguments: str, settings: Mapping[str, Any] | None = None
) -> WorkerProcess:
    """Start `kw`; the first queue is the default one of its application."""
    queue = queues.partition(",")[0]
    command = ["run", "-A", "tests.compat.native_app:app", "-b", url, "--result-backend", url, "-Q", queues]
    return WorkerProcess(
        [*command, "-l", "info", *arguments], cwd=folder, env=environment(url, queue, settings)
    ).wait_until_ready()


class CeleryWorker:
    """A stock Celery worker (prefork) in a process of its own; the first queue is the default one of its application.

    :param heartbeat: send heartbeat events, without which it has no switch for others.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        queues: str,
        *arguments: str,
        settings: Mapping[str, Any] | None = None,
        heartbeat: bool = False,
    ) -> None:
        queue = queues.partition(",")[0]
        self._log = folder / f"celery-{queue}.log"
        command = [sys.executable, "-m", "celery", "-A", "tests.compat.celery_app", "worker", "-Q", queues]
        quiet = ["--without-gossip", "--without-mingle", "-l", "info", "-n", f"{queue}@peer"]
        if "-E" not in arguments and not heartbeat:
            quiet.append("--without-heartbeat")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *quiet, *arguments],
                cwd=folder,
                env={**os.environ, **environment(url, queue, settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(self, *, within_s: float = 30.0) -> Self:
        """Wait for its `ready` line."""

        def ready() -> bool:
            return " ready." in self.output or self._process.poll() is not None

        eventually(ready, within_s=within_s, message=lambda: f"a Celery worker:\n{self.output}")
        assert self._process.poll() is None, f"the Celery worker ended:\n{self.output}"
        return self

    def wait(self, within_s: float) -> int:
        """Wait for its end; its exit code."""
        return self._process.wait(within_s)

    def kill(self) -> None:
        """End it and its children at once. Idempotent."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
