"""The page that outlives its executor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kernel_worker.board import Board


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(3)
    yield board
    board.close()


def test_a_new_board_shows_idle_slots(board: Board) -> None:
    assert [board.read(slot) for slot in range(3)] == [(0, 0.0, 0)] * 3


def test_slots_do_not_touch_each_other(board: Board) -> None:
    board.start(1, 7, 12.5, 6)

    assert board.read(1) == (7, 12.5, 6)
    assert board.read(0) == board.read(2) == (0, 0.0, 0)


def test_the_end_of_a_job_leaves_what_is_done(board: Board) -> None:
    board.start(0, 7, 12.5, 6)

    board.idle(0, 7)

    assert board.read(0) == (0, 0.0, 7)


def test_tags_and_times_of_a_worker_that_runs_for_years_fit(board: Board) -> None:
    board.start(2, 2**63, 4e9 + 0.25, 2**63 - 1)

    assert board.read(2) == (2**63, 4e9 + 0.25, 2**63 - 1)


def test_what_a_killed_process_wrote_is_read_by_the_other_one(board: Board) -> None:
    code = f"import os; from kernel_worker.board import Board; Board({board.fd}, 3).start(1, 42, 1.5, 41); os.kill(os.getpid(), 9)"

    subprocess.run([sys.executable, "-c", code], pass_fds=[board.fd])

    assert board.read(1) == (42, 1.5, 41)


def test_a_running_job_is_never_shown_with_another_start_than_its_own(board: Board) -> None:
    """Else a task that has just begun would seem to run for days, and be killed for its limit."""
    code = f"""
from kernel_worker.board import Board
board = Board({board.fd}, 3)
for tag in range(1, 2_000_000):
    board.start(0, tag, 1e6 + tag, tag)
    board.idle(0, tag)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], pass_fds=[board.fd])
    try:
        while board.last_started(0) < 200_000 and writer.poll() is None:
            tag, started, _ = board.read(0)
            assert tag == 0 or started >= 1e6, (tag, started)
    finally:
        writer.kill()
        writer.wait()


def test_a_descriptor_closed_by_a_task_does_not_unmap_the_board(board: Board) -> None:
    other = Board(os.dup(board.fd), 3)
    os.close(other.fd)

    other.start(0, 9, 1.0, 8)
    other.fd = -1

    assert board.read(0) == (9, 1.0, 8)


def test_the_descriptor_is_not_inherited_by_programs_that_tasks_start(board: Board) -> None:
    assert not os.get_inheritable(board.fd)


def test_closing_twice_is_harmless() -> None:
    board = Board.create(1)

    board.close()
    board.close()

    with pytest.raises(ValueError):
        board.read(0)
