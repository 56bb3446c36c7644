"""A coroutine into which any exception can be raised, once, where it waits or while it computes."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kernel_pool_asyncio.run import Run
from kernel_worker.interrupting import Aim


class _Limit(Exception):
    pass


def _run(make: Callable[[], Coroutine[Any, Any, Any]], raise_at_s: float | None = None) -> Any:
    """Run it to its end; what it returned, or the exception it ended with."""

    async def main() -> Any:
        run = Run(1, make())
        run.task = asyncio.ensure_future(run.steps())
        if raise_at_s is not None:
            run.aim = Aim(0, _Limit("over"))
            asyncio.get_running_loop().call_later(raise_at_s, run.deliver)
        return (await asyncio.wait_for(asyncio.gather(run.task, return_exceptions=True), 5.0))[0]

    return asyncio.run(main())


async def _value() -> int:
    await asyncio.sleep(0)
    return 7


async def _failing() -> None:
    await asyncio.sleep(0)
    raise KeyError("own")


async def _catching() -> str:
    try:
        await asyncio.sleep(3)
    except _Limit as error:
        await asyncio.sleep(0.01)
        return f"caught {error}"
    return "slept"


async def _gathering() -> str:
    other = asyncio.ensure_future(asyncio.sleep(3))
    try:
        await asyncio.gather(other, asyncio.sleep(3))
    except _Limit:
        return f"cancelled: {other.cancelled()}"
    return "slept"


async def _with_a_timeout_of_its_own() -> str:
    try:
        async with asyncio.timeout(1.0):
            try:
                await asyncio.sleep(3)
            except _Limit:
                await asyncio.sleep(3)
    except TimeoutError:
        return "timed out"
    return "slept"


async def _waiting_for_one_that_fails() -> str:
    async def fail() -> None:
        raise KeyError("inner")

    try:
        await asyncio.ensure_future(fail())
    except KeyError as error:
        return str(error)
    return ""


async def _cancelled_by_itself() -> str:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    try:
        await asyncio.sleep(3)
    except asyncio.CancelledError:
        return "cancelled"
    return "slept"


@pytest.mark.parametrize(
    ("make", "raise_at_s", "expected"),
    [
        pytest.param(_value, None, 7, id="a value"),
        pytest.param(_catching, 0.02, "caught over", id="caught"),
        pytest.param(_gathering, 0.02, "cancelled: True", id="what it waits for is cancelled"),
        pytest.param(_with_a_timeout_of_its_own, 0.02, "timed out", id="its own timeouts go on working"),
        pytest.param(_waiting_for_one_that_fails, None, "'inner'", id="failures of what it awaits"),
        pytest.param(_cancelled_by_itself, None, "cancelled", id="a cancellation of its own"),
        pytest.param(_value, 1.0, 7, id="ended before"),
    ],
)
def test_coroutine_ends_as_it_should(make: Any, raise_at_s: float | None, expected: Any) -> None:
    assert _run(make, raise_at_s) == expected


def test_what_is_not_caught_ends_it() -> None:
    async def sleeping() -> None:
        await asyncio.sleep(3)

    assert isinstance(_run(sleeping, 0.02), _Limit)


def test_its_own_error_is_its_end() -> None:
    assert isinstance(_run(_failing), KeyError)


def test_raised_before_the_first_step_it_comes_inside_the_coroutine() -> None:
    assert _run(_catching, 0.0) == "caught over"


def test_one_that_computes_is_interrupted_by_a_signal() -> None:
    async def main() -> Any:
        async def computing() -> str:
            try:
                while True:
                    time.sleep(0.001)
            except _Limit:
                return "interrupted"

        run = Run(1, computing())
        before = signal.signal(signal.SIGUSR1, lambda number, frame: run.interrupt(frame))
        try:
            run.aim = Aim(0, _Limit())
            timer = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
            timer.start()
            return await run.steps()
        finally:
            signal.signal(signal.SIGUSR1, before)

    assert asyncio.run(main()) == "interrupted"
