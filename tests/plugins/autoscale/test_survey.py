"""The broker is counted off the loop, rarely, and its troubles stay its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from kernel_autoscale import survey as module
from kernel_autoscale.survey import Survey
from kernel_worker import BrokerUnavailable
from kernel_worker.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_answer_comes_on_the_loop(loop: Loop) -> None:
    survey = Survey(loop, lambda: 7)

    survey.ask()
    loop.run_until(lambda: survey.waiting == 7, time.monotonic() + 5.0)

    assert survey.waiting == 7
    survey.stop(time.monotonic() + 1.0)


def test_a_broker_that_does_not_answer_holds_nobody_up(loop: Loop) -> None:
    answer = threading.Event()
    asked = threading.Event()
    calls: list[int] = []

    def count() -> int:
        calls.append(1)
        asked.set()
        answer.wait(10.0)
        return 1

    survey = Survey(loop, count)
    survey.ask()
    assert asked.wait(5.0)
    began = time.monotonic()
    for _ in range(100):
        survey.ask()
    survey.stop(time.monotonic() + 5.0)
    took = time.monotonic() - began

    answer.set()
    assert took < 1.0
    assert len(calls) == 1


def test_a_broker_that_is_away_counts_as_empty(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    answers: list[int | Exception] = [5, BrokerUnavailable("away"), 6]

    def count() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    survey = Survey(loop, count)
    seen = []
    for expected in (5, 0, 6):
        survey.ask()
        loop.run_until(lambda expected=expected: survey.waiting == expected, time.monotonic() + 5.0)
        seen.append(survey.waiting)

    assert seen == [5, 0, 6]
    survey.stop(time.monotonic() + 1.0)
