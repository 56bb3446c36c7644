"""The result backend contract: everything the docstrings of `kernel_worker.ResultBackend` promise.

class TestMyResults(ResultBackendContract):
    @pytest.fixture
    def make_backend(self, my_server_url):
        with backend_factory(MyResults, my_server_url) as make:
            yield make

    @pytest.fixture
    def leftovers(self, my_server):
        return lambda: my_server.count_subscriptions()
"""

from __future__ import annotations

import os
import string
import time
from collections.abc import Callable

import pytest

from ..drivers import ResultBackend
from .messages import task_meta
from .results_base import ResultSuite, fork, state_of, stored
from .results_waiting import WaitingTests

ODD_IDS = {
    "one character": "a",
    "digits": "007",
    "every allowed character": string.ascii_letters + string.digits + "_.:-",
    "only punctuation": "..:-_",
    "starts with a dash": "-rf",
    "long": "x" * 255,
}


class StoringTests(ResultSuite, suite=True):
    """`store`, `fetch`, `forget` and expiry."""

    def test_nothing_is_stored_for_an_unknown_id(self, backend: ResultBackend) -> None:
        assert backend.fetch("never-stored") is None

    def test_stored_meta_comes_back_byte_identical(self, backend: ResultBackend) -> None:
        result = stored("t1", result={"ä": [1, None, "\u2028"]})

        backend.store([result])

        assert backend.fetch("t1") == result.payload

    def test_other_instances_see_what_was_stored(self, make_backend: Callable[..., ResultBackend]) -> None:
        make_backend().store([stored("t1")])

        assert state_of(make_backend().fetch("t1")) == "SUCCESS"

    def test_storing_again_is_storing_once(self, backend: ResultBackend) -> None:
        backend.store([stored("t1", result=1)])
        backend.store([stored("t1", result=1)])

        assert backend.fetch("t1") == task_meta("t1", result=1)

    def test_empty_burst_does_nothing(self, backend: ResultBackend) -> None:
        backend.store([])

    @pytest.mark.parametrize("state", ["STARTED", "RETRY", "FAILURE", "REVOKED", "PROGRESS"])
    def test_success_is_never_replaced(self, backend: ResultBackend, state: str) -> None:
        backend.store([stored("t1", result=42)])
        backend.store([stored("t1", state)])

        assert backend.fetch("t1") == task_meta("t1", result=42)

    @pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
    def test_final_state_is_never_replaced_by_a_retry(self, backend: ResultBackend, state: str) -> None:
        """Of two tries on two slots the second may end before the first has told that it asked for it."""
        backend.store([stored("t1", "STARTED"), stored("t1", state, result="the end")])
        backend.store([stored("t1", "RETRY"), stored("t2", "RETRY")])

        assert backend.fetch("t1") == task_meta("t1", state, result="the end")
        assert state_of(backend.fetch("t2")) == "RETRY"

    @pytest.mark.parametrize("state", ["STARTED", "RETRY", "FAILURE", "REVOKED", "PROGRESS"])
    def test_success_replaces_every_other_state(self, backend: ResultBackend, state: str) -> None:
        backend.store([stored("t1", state)])
        backend.store([stored("t1", result=42)])

        assert backend.fetch("t1") == task_meta("t1", result=42)

    def test_success_is_not_replaced_within_one_burst(self, backend: ResultBackend) -> None:
        backend.store([stored("t1", "STARTED"), stored("t1", result=42), stored("t1", "FAILURE"), stored("t2")])

        assert backend.fetch("t1") == task_meta("t1", result=42)
        assert state_of(backend.fetch("t2")) == "SUCCESS"

    def test_last_of_several_states_of_a_burst_stays(self, backend: ResultBackend) -> None:
        backend.store([stored("t1", "STARTED"), stored("t1", "RETRY"), stored("t1", "FAILURE")])

        assert state_of(backend.fetch("t1")) == "FAILURE"

    def test_burst_of_a_thousand_is_stored(self, backend: ResultBackend) -> None:
        burst = [stored(f"t{n:04}", result=n) for n in range(1_000)]
        began = time.monotonic()

        backend.store(burst)

        assert time.monotonic() - began < 3.0
        assert [backend.fetch(each.task_id) for each in burst] == [each.payload for each in burst]

    def test_large_result_is_stored(self, backend: ResultBackend) -> None:
        result = stored("large", result="x" * 5_000_000)

        backend.store([result])

        assert backend.fetch("large") == result.payload
        assert backend.wait("large", 5.0, lambda _: True) == result.payload

    @pytest.mark.parametrize("task_id", ODD_IDS.values(), ids=ODD_IDS.keys())
    def test_every_valid_id_works(self, backend: ResultBackend, task_id: str) -> None:
        backend.store([stored(task_id, result=1)])

        assert backend.fetch(task_id) == task_meta(task_id, result=1)
        assert backend.wait(task_id, 5.0, lambda _: True) == task_meta(task_id, result=1)
        backend.forget(task_id)
        assert backend.fetch(task_id) is None

    def test_ids_that_look_alike_are_different(self, backend: ResultBackend) -> None:
        names = ["abc", "ABC", "abc.", "abcd", "a:bc", "1", "01", "1.0"]

        backend.store([stored(name, result=name) for name in names])

        assert [backend.fetch(name) for name in names] == [task_meta(name, result=name) for name in names]

    # ------------------------------------------------------------------ forgetting and expiring

    def test_forgotten_result_is_gone(self, backend: ResultBackend) -> None:
        backend.store([stored("t1"), stored("t2")])

        backend.forget("t1")
        backend.forget("never-stored")

        assert backend.fetch("t1") is None
        assert state_of(backend.fetch("t2")) == "SUCCESS"

    def test_any_state_may_be_stored_after_forgetting(self, backend: ResultBackend) -> None:
        backend.store([stored("t1")])
        backend.forget("t1")

        backend.store([stored("t1", "FAILURE")])

        assert state_of(backend.fetch("t1")) == "FAILURE"

    def test_result_is_gone_after_its_expiry_and_not_before(self, backend: ResultBackend) -> None:
        backend.store([stored("short", expires=1.0), stored("long", expires=60.0), stored("ever", expires=None)])
        there = backend.fetch("short") is not None

        self.wait_until_gone(backend, "short")

        assert there
        assert state_of(backend.fetch("long")) == "SUCCESS"
        assert state_of(backend.fetch("ever")) == "SUCCESS"

    def test_expired_success_does_not_block_a_new_state(self, backend: ResultBackend) -> None:
        backend.store([stored("t1", expires=1.0)])
        self.wait_until_gone(backend, "t1")

        backend.store([stored("t1", "STARTED")])

        assert state_of(backend.fetch("t1")) == "STARTED"

    # ------------------------------------------------------------------ processes

    def test_forked_child_stores_while_the_parent_goes_on(self, backend: ResultBackend) -> None:
        """Both open connections of their own: answers of one must not reach the other."""
        backend.store([stored("before")])

        child = fork(lambda: _store_one_by_one(backend, "c", 50))
        for n in range(50):
            backend.store([stored(f"p{n}", result=n)])
            assert backend.fetch(f"p{n}") == task_meta(f"p{n}", result=n)
        status = os.waitpid(child, 0)[1]

        assert status == 0
        assert all(backend.fetch(f"c{n}") == task_meta(f"c{n}", result=n) for n in range(50))

    def test_closing_twice_is_closing_once(self, backend: ResultBackend) -> None:
        backend.store([stored("t1")])

        backend.close()
        backend.close()

    def test_store_that_does_not_answer_is_a_connection_error(
        self, unreachable_backend: Callable[[], ResultBackend]
    ) -> None:
        backend = unreachable_backend()

        with pytest.raises(ConnectionError):
            backend.store([stored("t1")])
        with pytest.raises(ConnectionError):
            backend.fetch("t1")
        backend.close()


def _store_one_by_one(backend: ResultBackend, prefix: str, count: int) -> None:
    for n in range(count):
        backend.store([stored(f"{prefix}{n}", result=n)])


class ResultBackendContract(StoringTests, WaitingTests, suite=True):
    """What every result backend does. Derive from it and give `make_backend` and `leftovers`."""
