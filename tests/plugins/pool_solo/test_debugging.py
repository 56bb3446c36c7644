"""`breakpoint()` in a task on solo gives a prompt at the terminal, while the kernel goes on."""

from __future__ import annotations

import codecs
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import eventually

APP = """
from kernel_app import App

app = App("toy", broker_url="sqlite:///kw.db", result_backend="sqlite:///kw.db")

@app.task(name="debug")
def debug(x):
    y = x * 2
    breakpoint()
    return y
"""


class Terminal:
    """A worker at a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "toy.py").write_text(APP)
        self._fd, other = pty.openpty()
        command = [sys.executable, "-m", "kernel_worker.cli", "run", "-A", "toy", "-P", "solo", "--lease", "3"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=other, stdout=other, stderr=other, start_new_session=True
        )
        os.close(other)
        os.set_blocking(self._fd, False)
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def shows(self, text: str) -> bool:
        try:
            while data := os.read(self._fd, 65536):
                self.shown += self._decoder.decode(data)
        except OSError:
            pass
        return text in self.shown

    def wait_for(self, text: str) -> None:
        eventually(lambda: self.shows(text), within_s=15, message=lambda: f"{text!r} in {self.shown!r}")

    def type(self, line: str) -> None:
        self.shown = ""
        os.write(self._fd, f"{line}\n".encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def test_breakpoint_gives_a_prompt_while_pings_are_answered_and_the_lease_is_renewed(
    terminal: Terminal, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/kw.db"
    app = App("client", broker_url=url, result_backend=url)
    terminal.wait_for("ready.")
    eventually(lambda: app.control.ping(timeout=1, limit=1), within_s=15)

    result = app.send_task("debug", [21])
    terminal.wait_for("(Pdb)")
    terminal.type("p y + 1")
    terminal.wait_for("43")
    assert [list(reply.values()) for reply in app.control.ping(timeout=10, limit=1)] == [[{"ok": "pong"}]]
    begun = time.monotonic()
    other = Terminal(tmp_path)  # would take the message over if its lease ended
    try:
        other.wait_for("ready.")
        eventually(lambda: time.monotonic() - begun > 7.0, within_s=15)  # more than two leases
        assert not other.shows("(Pdb)")
    finally:
        other.close()

    terminal.type("continue")
    assert result.get(timeout=10) == 42
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(10) == 0
    app.close()
