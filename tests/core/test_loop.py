"""The reactor: order, timers, threads, signals, and that nothing ends it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kernel_worker.loop import Loop

from .puppet import Clock


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_posted_callbacks_run_in_the_order_they_were_posted(loop: Loop) -> None:
    ran: list[int] = []

    for number in range(100):
        loop.post(ran.append, number)
    loop.turn(0)

    assert ran == list(range(100))


def test_a_callback_posted_by_a_posted_one_waits_for_the_next_turn(loop: Loop) -> None:
    """Else a callback that posts itself would keep descriptors and timers from ever being looked at."""
    ran: list[str] = []

    def again() -> None:
        ran.append("again")
        loop.post(again)

    loop.post(again)
    loop.turn(0)

    assert ran == ["again"]


def test_a_post_from_another_thread_wakes_the_loop(loop: Loop) -> None:
    ran: list[str] = []
    thread = threading.Thread(target=loop.post, args=(ran.append, "posted"))

    thread.start()
    begun = time.monotonic()
    woken = loop.run_until(lambda: ran, time.monotonic() + 5.0)
    thread.join()

    assert woken
    assert time.monotonic() - begun < 0.9  # the loop did not merely look by chance


class _InterferingSocket:
    """The reading end of the wake-up pair, with another thread's post just before it is read."""

    def __init__(self, sock: socket.socket, interfere: Any) -> None:
        self._sock = sock
        self._interfere = interfere

    def recv(self, size: int) -> bytes:
        interfere, self._interfere = self._interfere, lambda: None
        interfere()
        return self._sock.recv(size)

    def close(self) -> None:
        self._sock.close()


def test_a_post_while_the_loop_reads_its_wake_up_leaves_the_next_post_able_to_wake(loop: Loop) -> None:
    """Cause: the flag "a byte is on its way" was cleared before the bytes were read, so a post in between set it,
    its byte was read, and no later post ever sent another one: the loop was deaf to all threads."""
    ran: list[str] = []
    loop._wake_r = _InterferingSocket(loop._wake_r, lambda: loop.post(ran.append, "in between"))  # type: ignore[assignment]
    loop.post(ran.append, "first")
    loop.turn(0)
    loop.turn(0)

    thread = threading.Timer(0.02, loop.post, (ran.append, "later"))
    thread.start()
    begun = time.monotonic()
    loop.turn(5.0)
    thread.join()

    assert time.monotonic() - begun < 4.0, "the post did not wake the loop"
    assert ran == ["first", "in between", "later"]


def test_posts_of_many_threads_all_run_and_each_thread_keeps_its_order(loop: Loop) -> None:
    ran: list[tuple[int, int]] = []

    def post_many(thread: int) -> None:
        for number in range(2000):
            loop.post(ran.append, (thread, number))

    threads = [threading.Thread(target=post_many, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    finished = loop.run_until(lambda: len(ran) == 8000, time.monotonic() + 10.0)
    for thread in threads:
        thread.join()

    assert finished
    assert all([n for t, n in ran if t == thread] == list(range(2000)) for thread in range(4))


def test_post_after_close_is_harmless() -> None:
    loop = Loop()
    loop.close()

    loop.post(print, "never")


def test_a_callback_that_raises_is_logged_with_its_owner_and_the_rest_goes_on(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    def broken() -> None:
        raise ValueError("a bug")

    loop.post(broken)
    loop.call_later(0, broken)
    loop.at_turn_end(broken)
    loop.at_turn_end(lambda: ran.append("turn end"))
    loop.post(ran.append, "posted")
    with caplog.at_level(logging.ERROR):
        loop.turn(0)

    assert ran == ["posted", "turn end"]
    assert "broken" in caplog.text
    assert caplog.text.count("ValueError: a bug") == 3


def test_timers_run_by_time_and_not_before_it(clock: Clock, loop: Loop) -> None:
    ran: list[str] = []

    loop.call_later(0.03, ran.append, "late")
    loop.call_later(0.01, ran.append, "early")
    loop.call_later(0.01, ran.append, "early, second")
    loop.turn(0)
    before = list(ran)
    clock.now += 0.02
    loop.turn(0)
    between = list(ran)
    clock.now += 0.02
    loop.turn(0)

    assert before == []
    assert between == ["early", "early, second"]
    assert ran == ["early", "early, second", "late"]


def test_a_cancelled_timer_does_not_run_and_lets_go_of_its_arguments(loop: Loop) -> None:
    ran: list[str] = []
    timer = loop.call_later(0, ran.append, "cancelled")

    timer.cancel()
    loop.turn(0)

    assert ran == []
    assert timer.args == ()


def test_a_timer_in_a_thousand_years_does_not_end_the_loop(loop: Loop) -> None:
    """Cause: `epoll` refuses time-outs above 2**31 ms with OverflowError, outside of any callback."""
    loop.call_later(3e10, print, "never")
    posted = threading.Event()
    thread = threading.Timer(0.02, loop.post, (posted.set,))

    thread.start()
    while not posted.is_set():
        loop.turn()
    thread.join()


def test_turn_end_callbacks_run_once_per_turn_after_everything_else(loop: Loop) -> None:
    ran: list[str] = []
    loop.at_turn_end(lambda: ran.append("end"))

    loop.call_later(0, ran.append, "timer")
    loop.post(ran.append, "posted")
    loop.turn(0)

    assert ran == ["posted", "timer", "end"]


def test_reader_and_writer_of_a_descriptor_are_called(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ran: list[str] = []
    loop.add_reader(ours, lambda: ran.append(ours.recv(10).decode()))
    loop.set_writer(ours, ran.append, "writable")

    theirs.send(b"read")
    loop.turn(0)
    loop.set_writer(ours, None)
    loop.turn(0)

    assert ran == ["read", "writable"]


def test_a_removed_descriptor_is_forgotten_and_unknown_ones_are_ignored(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    ran: list[str] = []
    loop.add_reader(ours, ran.append, "read")

    loop.remove(ours)
    loop.remove(ours)
    theirs.send(b"x")
    loop.turn(0)

    assert ran == []


def test_a_reader_removed_by_another_one_in_the_same_turn_is_not_called(loop: Loop) -> None:
    """Cause: the events of a turn are a list made before the first callback runs; a callback that closes another
    descriptor made that one's callback read from a closed socket."""
    pairs = [socket.socketpair(), socket.socketpair()]
    ran: list[int] = []

    def read(index: int) -> None:
        ran.append(index)
        for ours, _ in pairs:
            loop.remove(ours)

    for index, (ours, theirs) in enumerate(pairs):
        loop.add_reader(ours, read, index)
        theirs.send(b"x")
    loop.turn(0)
    for ours, theirs in pairs:
        ours.close()
        theirs.close()

    assert len(ran) == 1


def test_run_until_gives_up_at_the_deadline(loop: Loop) -> None:
    begun = time.monotonic()

    assert not loop.run_until(lambda: False, begun + 0.02)
    assert time.monotonic() - begun < 0.9


def test_signals_are_handled_on_the_loop_and_only_there(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    ran: list[int] = []
    loop.install_signals({signal.SIGUSR2: ran.append})
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
        at_once = list(ran)
        loop.run_until(lambda: ran, time.monotonic() + 5.0)
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert at_once == []
    assert set(ran) == {signal.SIGUSR2}


def test_a_signal_reaches_a_loop_on_a_second_thread_while_the_main_thread_computes(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    heard = threading.Event()
    loop.install_signals({signal.SIGUSR2: lambda number: heard.set()})
    thread = threading.Thread(target=loop.run_until, args=(heard.is_set, time.monotonic() + 5.0))
    thread.start()
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        deadline = time.monotonic() + 5.0
        while not heard.is_set() and time.monotonic() < deadline:
            sum(range(1000))  # a task that computes
    finally:
        signal.signal(signal.SIGUSR2, before)
        thread.join()

    assert heard.is_set()


def test_turned_at_tells_how_long_ago_the_loop_turned(loop: Loop) -> None:
    loop.turn(0)

    assert 0 <= time.monotonic() - loop.turned_at < 1.0
