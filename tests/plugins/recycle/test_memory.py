"""Resident memory by process id, on Linux and elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kernel_recycle.memory import ProcMemory, ask_ps, open_memory


@pytest.fixture
def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("read", [ProcMemory().read, ask_ps], ids=["proc", "ps"])
def test_memory_is_what_the_process_has(read, ended_pid: int) -> None:
    ballast = bytearray(os.urandom(1) * 50_000_000)

    found = read([os.getpid(), ended_pid])

    assert len(ballast) == 50_000_000
    assert found.keys() == {os.getpid()}
    assert 50_000 < found[os.getpid()] < 5_000_000


def test_some_way_is_found_here() -> None:
    memory = open_memory()

    memory.read([os.getpid()])
    memory.close()
