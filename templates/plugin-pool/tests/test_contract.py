"""The pool contract, held against the @name@ pool."""

from __future__ import annotations

import pytest

from kernel_pool_@name@ import @Name@Options, @Name@Pool
from kernel_worker.testing import PoolContract


class Test@Name@Pool(PoolContract):
    driver = @Name@Pool


def test_spare_slots_are_left_out_and_one_remains() -> None:
    pool = @Name@Pool(@Name@Options(spare=2))

    assert [pool.layout(concurrency).processes for concurrency in (1, 2, 3, 8)] == [1, 1, 1, 6]


def test_spare_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="below 0"):
        @Name@Options(spare=-1)
