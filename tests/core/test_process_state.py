"""What a task has changed in its process is put back: at once where Python did it, soon whoever did it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import logging, os, posix, signal, sys, time
from kernel_worker.process_state import LONG_S, LOOK_EVERY_S, ProcessState, watch

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
state._looked_at = time.monotonic() - LOOKED * LOOK_EVERY_S
state.restore_after(time.monotonic() - RAN * LONG_S, is_last=IS_LAST)
print("put back" if look() == before else "left", state._changes.noted)
"""


@pytest.mark.parametrize(
    ("change", "looked", "ran", "is_last", "expected"),
    [
        ("chdir('/')", 0, 0, False, "put back"),
        ("fchdir(os.open('/', os.O_RDONLY))", 0, 0, False, "put back"),
        ("umask(0o7)", 0, 0, False, "put back"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 0, 0, False, "put back"),
        ("posix.chdir('/')", 0, 2, False, "left"),
        ("posix.chdir('/')", 2, 0, False, "put back"),
        ("posix.umask(0o7)", 2, 0, False, "put back"),
        ("posix.umask(0o7)", 0, 2, True, "put back"),
        ("posix.umask(0o7)", 2, 0, True, "put back"),
    ],
)
def test_change_is_put_back(tmp_path: Path, change: str, looked: int, ran: int, is_last: bool, expected: str) -> None:
    """`looked` and `ran`: how long ago, in units after which one looks."""
    code = CODE.replace("CHANGE", change)
    for name, value in (("LOOKED", looked), ("RAN", ran), ("IS_LAST", is_last)):
        code = code.replace(name, str(value))

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=20)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{expected} False"
    assert ("which is put back (told once)" in done.stdout) is (expected == "put back")
