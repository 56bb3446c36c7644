"""What a task has changed in its process is put back: at once where Python did it, soon whoever did it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import logging, os, posix, signal, sys, time
from kernel_worker.process_state import LOOK_EVERY_S, ProcessState, watch

logging.basicConfig(stream=sys.stdout, format="%(message)s")
assert watch() is watch()
from os import chdir, fchdir, umask  # as an application does that is imported afterwards
state = ProcessState()

def look():
    mask = posix.umask(0)
    posix.umask(mask)
    return os.getcwd(), mask, signal.getsignal(signal.SIGTERM)

before = look()
CHANGE
assert look() != before
time.sleep(RAN * LOOK_EVERY_S)
state.restore_if_due()
print("put back" if look() == before else "left", state._changes.noted)
"""


@pytest.mark.parametrize(
    ("change", "ran", "expected"),
    [
        ("chdir('/')", 0, "put back"),
        ("fchdir(os.open('/', os.O_RDONLY))", 0, "put back"),
        ("umask(0o7)", 0, "put back"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 0, "put back"),
        ("posix.chdir('/')", 0, "left"),
        ("posix.chdir('/')", 2, "put back"),
        ("posix.umask(0o7)", 2, "put back"),
    ],
)
def test_change_is_put_back(tmp_path: Path, change: str, ran: int, expected: str) -> None:
    code = CODE.replace("CHANGE", change).replace("RAN", str(ran))

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=20)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{expected} False"
    assert ("which is put back (told once)" in done.stdout) is (expected == "put back")
