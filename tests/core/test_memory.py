"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import eventually
from tests.conftest import RunKw

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc keeps it, and only it gives it back"
)

HOLES = """
import sys
from kernel_worker import memory

def resident_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

blocks = [bytearray(b"x" * 50_000) for _ in range(1000)]
blocks = blocks[-1:]  # the last one stays: what is below it is free, and still ours
before = resident_kib()
memory.give_back()
print(before - resident_kib())
"""

APPLICATION = """
import os
from kernel_app import App
app = App("holes")
kept = []

@app.task
def make_holes():
    blocks = [bytearray(b"x" * 50_000) for _ in range(1000)]
    kept.append(blocks[-1])
    return os.getpid()
"""


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_what_lies_below_memory_in_use_goes_back() -> None:
    given = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True).stdout

    assert int(given) > 40_000


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_executor_that_has_nothing_to_do_gives_its_memory_back(kw: RunKw, tmp_path: Path, pool: str) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    url = f"sqlite:///{tmp_path}/kw.db"
    kw("run", "-A", "application", "-b", url, "-P", pool, "-c", "1")
    with closing(App("sender", broker_url=url, result_backend=url)) as app:
        pid = app.send_task("application.make_holes").get(timeout=15)

    eventually(lambda: resident_kib(pid) < 50_000, within_s=15, message=lambda: f"{resident_kib(pid)} KiB are left")
