"""The example that `make demo` runs: its figures are right, and it leaves nothing behind, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kernel_worker.testing import eventually
from tests.e2e.environments import ROOT, clean_environ

DEMO = [sys.executable, "-m", "examples.textindex.demo"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose temporary files are seen by the test."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return clean_environ(TMPDIR=str(scratch))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five text files, two of them equal, one that is none, one that cannot be read as text."""
    folder = tmp_path / "tree"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.py").write_text("alpha = beta\nbeta = alpha\n")
    (folder / "two.txt").write_text("no line end")
    (folder / "deep" / "three.md").write_text("# alpha\n\nalpha beta\n")
    (folder / "deep" / "copy.md").write_text("# alpha\n\nalpha beta\n")
    (folder / "empty.txt").write_text("")
    (folder / "program.bin").write_bytes(b"\0\1\2")
    return folder


def left_behind(environ: dict[str, str]) -> list[str]:
    """Processes that were started with this environment and still run."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if process.environ().get("TMPDIR") == environ["TMPDIR"]:
                found.append(f"{process.pid} {process.info['cmdline']}")
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_demo_indexes_a_folder_and_stops_its_worker(tree: Path, environ: dict[str, str]) -> None:
    done = subprocess.run([*DEMO, str(tree)], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=50)

    shown = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files 5 lines 9 words 17" in shown
    assert "same content as another file: 1" in shown
    assert "alpha 6" in shown
    assert "beta 4" in shown
    assert "worker stopped, exit code 0" in shown
    assert "indexed 100 %" in done.stderr
    assert os.listdir(environ["TMPDIR"]) == []
    assert left_behind(environ) == []


def test_file_that_is_no_text_is_reported_and_the_others_are_indexed(tree: Path, environ: dict[str, str]) -> None:
    (tree / "broken.py").write_bytes(b"a\0b")

    done = subprocess.run([*DEMO, str(tree)], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=50)

    assert done.returncode == 1
    assert "5 files in" in done.stdout
    assert "broken.py: not a text file" in done.stdout


def test_folder_that_does_not_exist_is_told_and_the_worker_is_stopped(tmp_path: Path, environ: dict[str, str]) -> None:
    nowhere = str(tmp_path / "nowhere")

    done = subprocess.run([*DEMO, nowhere], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=50)

    assert done.returncode == 2
    assert f"{nowhere} is not a folder" in done.stderr
    assert left_behind(environ) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "TERM"])
def test_interrupted_demo_leaves_nothing_behind(environ: dict[str, str], tmp_path: Path, number: int) -> None:
    log = tmp_path / "output"
    before = signal.signal(
        number, signal.default_int_handler
    )  # these tests may run where it is ignored: that is inherited
    try:
        with log.open("wb") as output:
            demo = subprocess.Popen(
                DEMO, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
    finally:
        signal.signal(number, before)
    # The client's first line: a program that is still being started may not hear the signal.
    eventually(lambda: "sent " in log.read_text(), within_s=40, message=log.read_text)

    os.killpg(demo.pid, number)  # the whole group, as a terminal does
    code = demo.wait(30)

    assert code == 128 + number, log.read_text()
    assert left_behind(environ) == []
    assert os.listdir(environ["TMPDIR"]) == []
