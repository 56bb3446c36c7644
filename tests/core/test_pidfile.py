"""One worker per pidfile; nobody else's file is touched, and no leftover keeps a worker from starting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_worker.errors import PidfileError
from kernel_worker.pidfile import Pidfile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kw.pid"


@pytest.fixture
def ended_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the file."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from kernel_worker.pidfile import Pidfile; p = Pidfile({str(path)!r}); p.acquire(); print(); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    yield process
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_file_holds_the_process_id_and_goes_with_the_worker(path: Path) -> None:
    pidfile = Pidfile(str(path))

    pidfile.acquire()
    text = path.read_text()
    pidfile.release()
    pidfile.release()

    assert text == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_file_held_by_a_living_worker_is_refused_and_left_alone(path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(PidfileError, match=f"held by a running worker .pid {holder.pid}") as failure:
        Pidfile(str(path)).acquire()

    assert failure.value.exit_code == 73
    assert path.read_text() == f"{holder.pid}\n"


def test_the_file_of_a_killed_worker_is_taken_over(path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    pidfile = Pidfile(str(path))

    pidfile.acquire()

    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


def test_a_file_that_names_a_living_process_without_a_lock_is_refused(path: Path) -> None:
    """It may be the pidfile of another program, which locks nothing."""
    path.write_text(f"{os.getppid()}\n")

    with pytest.raises(PidfileError, match=f"names the living process {os.getppid()}"):
        Pidfile(str(path)).acquire()

    assert path.read_text() == f"{os.getppid()}\n"


def test_a_file_that_names_an_ended_process_is_taken_over(path: Path, ended_pid: int) -> None:
    path.write_text(f"{ended_pid}\n")
    pidfile = Pidfile(str(path))

    pidfile.acquire()

    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"not a number\n", b"\xff\xfe\x00", b"-1\n", b"0\n", b"99999999999999999999\n", b"1" * 5000],
    ids=["empty", "newline", "words", "bytes", "negative", "zero", "no pid has 20 digits", "5000 digits"],
)
def test_a_file_with_garbage_is_taken_over(path: Path, content: bytes) -> None:
    """Cause: a number too large for a process id was an OverflowError, and 0 was taken for a living process."""
    path.write_bytes(content)
    pidfile = Pidfile(str(path))

    pidfile.acquire()

    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


def test_a_symbolic_link_is_refused_and_its_target_left_alone(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    path.symlink_to(target)

    with pytest.raises(PidfileError, match=r"kw\.pid") as failure:
        Pidfile(str(path)).acquire()

    assert target.read_text() == "content"
    assert "--pidfile" in failure.value.hint


def test_a_hard_link_is_refused_and_its_other_name_left_alone(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    os.link(target, path)

    with pytest.raises(PidfileError, match="not a plain file of its own"):
        Pidfile(str(path)).acquire()

    assert target.read_text() == "content"


def test_a_fifo_is_refused_without_waiting_for_a_writer(path: Path) -> None:
    os.mkfifo(path)

    with pytest.raises(PidfileError, match="not a plain file"):
        Pidfile(str(path)).acquire()


@pytest.mark.parametrize("place", ["", "missing/folder/kw.pid"], ids=["a folder", "in no folder"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(PidfileError, match=str(tmp_path)):
        Pidfile(str(tmp_path / place)).acquire()


def test_a_file_that_somebody_replaced_is_not_removed(path: Path) -> None:
    pidfile = Pidfile(str(path))
    pidfile.acquire()
    path.unlink()
    path.write_text("somebody else's\n")

    pidfile.release()

    assert path.read_text() == "somebody else's\n"


def test_releasing_after_the_file_was_removed_is_harmless(path: Path) -> None:
    pidfile = Pidfile(str(path))
    pidfile.acquire()
    path.unlink()

    pidfile.release()


def test_no_program_started_later_inherits_the_lock(path: Path) -> None:
    pidfile = Pidfile(str(path))
    pidfile.acquire()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    pidfile.release()

    again = Pidfile(str(path))
    again.acquire()

    again.release()
    child.communicate(b"\n")


def test_the_lock_of_a_file_that_is_being_removed_is_not_the_lock_of_the_path(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: a worker that ends removes its file and then unlocks it. One that had opened the file before and
    locked it after held a file without a name, so a third worker could start beside it."""
    import fcntl

    leaving = Pidfile(str(path))
    leaving.acquire()
    path.write_text("")  # what it holds no process id for yet
    flock = fcntl.flock

    def flock_after_the_other_left(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        leaving.release()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_the_other_left)
    coming = Pidfile(str(path))
    coming.acquire()

    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(PidfileError, match="held by a running worker"):
        Pidfile(str(path)).acquire()
    coming.release()


def test_of_processes_that_race_for_a_stale_file_exactly_one_gets_it(path: Path, ended_pid: int) -> None:
    path.write_text(f"{ended_pid}\n")
    code = textwrap.dedent(
        f"""
        import sys
        from kernel_worker.errors import PidfileError
        from kernel_worker.pidfile import Pidfile
        print("here", flush=True)
        input()
        try:
            Pidfile({str(path)!r}).acquire()
        except PidfileError:
            print("refused", flush=True)
        else:
            print("taken", flush=True)
        input()
        """
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()

    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
    for racer in racers:
        racer.communicate("end\n")

    assert sorted(answers) == ["refused", "refused", "refused", "taken"]
