"""What `make demo` runs: a prefork worker on the embedded broker, the client, and an orderly end.

    python -m examples.textindex.demo [FOLDER]

Everything lives in a temporary folder that is removed at the end, also after Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_WITHIN_S = 30.0
STOP_WITHIN_S = 30.0


class DemoFailed(Exception):
    """Says what went wrong with the worker."""


@contextmanager
def worker(url: str, log: Path) -> Iterator[None]:
    """A running worker; leaving the block stops it with TERM and checks how it ended.

    :raises DemoFailed: it does not come up, does not stop, or ends with an exit code other than 0.
    """
    kw = str(Path(sys.executable).with_name("kw"))
    command = [kw, "run", "-P", "prefork", "-A", "examples.textindex.app", "-b", url, "--result-backend", url]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process only, which then stops the worker.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_ready(process, log)
        yield
        process.terminate()
        try:
            code = process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"the worker did not stop within {STOP_WITHIN_S:.0f} s of TERM") from None
        if code != 0:
            raise DemoFailed(f"the worker ended with exit code {code} instead of 0")
    finally:
        end(process)


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the worker says that it consumes.

    :raises DemoFailed: it ended before, or took longer than `READY_WITHIN_S`.
    """
    deadline = time.monotonic() + READY_WITHIN_S
    while not any(line.endswith("ready.") for line in log.read_text(errors="replace").splitlines()):
        if process.poll() is not None:
            raise DemoFailed(f"the worker ended with exit code {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise DemoFailed(f"the worker was not ready within {READY_WITHIN_S:.0f} s")
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """Whatever happened, leave no process behind: QUIT asks for a quick end, KILL takes its whole session."""
    if process.poll() is None:
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def demo(folder: list[str], home: Path) -> int:
    """Run worker and client with their files in `home`; the exit code for the shell."""
    url = f"sqlite:///{home / 'kw.db'}"
    log = home / "worker.log"
    began = time.monotonic()
    try:
        with worker(url, log):
            print(f"worker ready after {time.monotonic() - began:.2f} s (prefork, embedded broker)", flush=True)
            client = subprocess.run([sys.executable, "-m", "examples.textindex.run", "-b", url, *folder])
        print("worker stopped, exit code 0")
    except DemoFailed as error:
        print(f"demo: {error}. Its log:", file=sys.stderr)
        sys.stderr.write(log.read_text(errors="replace"))
        return 1
    if client.returncode != 0:
        print(f"demo: the client ended with exit code {client.returncode}. The worker's log:", file=sys.stderr)
        sys.stderr.write(log.read_text(errors="replace"))
    return client.returncode


def main() -> None:
    """Entry point; TERM and HUP clean up the same way as Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with tempfile.TemporaryDirectory(prefix="kw-demo-") as home:
        try:
            code = demo(sys.argv[1:], Path(home))
        except KeyboardInterrupt:
            print("\ninterrupted; the worker was stopped", file=sys.stderr)
            code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
