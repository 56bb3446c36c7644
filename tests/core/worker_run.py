"""One run of `toy_worker` as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from kernel_worker.testing import Ledger, eventually

from .toy_app import ROOT, TARGET


class WorkerRun:
    """A worker that was started.

    :param messages: (task, id, *arguments) of what waits in the broker.
    :param options: of the worker, by field name.
    """

    def __init__(
        self,
        folder: Path,
        *messages: tuple[Any, ...],
        step: str = "",
        away: bool = False,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.ledger = Ledger(folder / "ledger")
        self.away = folder / "away"
        if away:
            self.away.touch()
        self._output = folder / "output"
        waiting = [[task, task_id, list(arguments), 0] for task, task_id, *arguments in messages]
        environment = {
            **os.environ,
            "PYTHONPATH": ROOT,
            "TOY_LEDGER": str(self.ledger.path),
            "TOY_MESSAGES": json.dumps(waiting),
            "TOY_AWAY": str(self.away),
            "TOY_STEP": step,
            **(env or {}),
        }
        given = {"app": TARGET, "broker": "memory://", "concurrency": "1", "grace": "10", **options}
        if given["pool"] == "solo":
            del given["concurrency"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.core.toy_worker", json.dumps({k: str(v) for k, v in given.items()})],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._output.read_text(errors="replace")

    def wait_for(self, event: str, count: int = 1) -> None:
        """Wait until the ledger has an event that often."""
        eventually(
            lambda: self.ledger.count(event) >= count or self.process.poll() is not None,
            within_s=15,
            message=lambda: f"{event} in {self.ledger.entries()}\n{self.output}",
        )
        assert self.ledger.count(event) >= count, f"it ended with {self.process.returncode}:\n{self.output}"

    def signal(self, number: int) -> None:
        """Send a signal to the kernel process."""
        self.process.send_signal(number)

    def wait(self, within_s: float = 15.0) -> int:
        """Wait for its end; the exit code. Nothing of its process group may be left."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs: {self.ledger.entries()}\n{self.output}") from None
        eventually(lambda: not self._group_lives(), within_s=10.0, message="processes are left behind")
        return code

    def _group_lives(self) -> bool:
        """Whether a process of its group runs; one that ended and that nobody has waited for does not."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = status.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue  # it ended in between
            if int(group) == self.process.pid and state != "Z":
                return True
        return False

    def settled(self) -> dict[str, str]:
        """Task id to verdict, the last one each; "requeue+" when an attempt was counted."""
        found = {}
        for entry in self.ledger.entries():
            if (verdict := entry["event"]) in ("ack", "requeue", "dead", "delay"):
                found[entry["id"]] = verdict + ("+" if entry.get("count") else "")
        return found

    def kill(self) -> None:
        """Whatever is left of it. Idempotent."""
        if self._group_lives():
            with contextlib.suppress(ProcessLookupError):  # it ended in between
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
