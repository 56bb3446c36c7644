"""Where nothing is raised in a task: inside logging, imports and the taking of locks, for a while."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from kernel_worker import interrupting
from kernel_worker.interrupting import Aim, is_guarded
from kernel_worker.testing import eventually

NOTED: list[bool] = []


class NotingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        NOTED.append(is_guarded(sys._getframe()))


@contextmanager
def frame_of(wait: Callable[[], object], release: Callable[[], object]) -> Iterator[Callable[[], FrameType | None]]:
    """A thread that waits for something; its innermost frame, asked for again and again."""
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield lambda: sys._current_frames().get(thread.ident or 0)
    release()
    thread.join(5)
    assert not thread.is_alive()


def innermost(frame: FrameType | None) -> str:
    return frame.f_code.co_name if frame is not None else ""


@pytest.fixture
def noted() -> list[bool]:
    NOTED.clear()
    return NOTED


def test_plain_code_is_not_guarded() -> None:
    assert not is_guarded(sys._getframe())
    assert not is_guarded(None)


def test_a_log_handler_is_guarded_however_deep_it_is(noted: list[bool]) -> None:
    handler = NotingHandler()
    logger = logging.getLogger(__name__)
    logger.addHandler(handler)
    try:
        logger.warning("here")
    finally:
        logger.removeHandler(handler)

    assert noted == [True]


def test_a_module_that_is_being_imported_is_guarded(
    noted: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"import sys\nfrom kernel_worker.interrupting import is_guarded\nfrom {__name__} import NOTED\n"
    (tmp_path / "half_imported.py").write_text(text + "NOTED.append(is_guarded(sys._getframe()))\n")
    monkeypatch.syspath_prepend(tmp_path)

    importlib.import_module("half_imported")

    assert sys.modules.pop("half_imported")
    assert noted == [True]


def test_the_taking_of_a_lock_is_guarded() -> None:
    condition = threading.Condition()
    condition.acquire()

    def take() -> None:
        with condition:
            pass

    with frame_of(take, condition.release) as frame:
        eventually(lambda: innermost(frame()) == "__enter__")
        assert is_guarded(frame())


def test_waiting_for_something_to_happen_is_not_guarded() -> None:
    event = threading.Event()

    with frame_of(event.wait, event.set) as frame:
        eventually(lambda: innermost(frame()) == "wait")
        assert not is_guarded(frame())


def test_after_a_while_it_is_raised_wherever_the_task_is(noted: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupting, "PATIENCE_S", 0.0)
    condition = threading.Condition()
    condition.acquire()

    with frame_of(condition.__enter__, condition.release) as frame:
        eventually(lambda: is_guarded(frame()))
        assert not Aim(1, SystemExit()).must_wait(frame())
