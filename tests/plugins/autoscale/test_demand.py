"""The policy: how many slots a load needs."""

from __future__ import annotations

import pytest

from kernel_autoscale.demand import Demand, Load


def _steady(*, slots: int, running: int, waiting: int, per_s: float) -> int:
    """The need after six seconds of the same load, `per_s` tasks ending each second."""
    demand = Demand(30.0)
    for tick in range(13):
        need = demand.measure(Load(tick / 2, slots, running, waiting, int(tick / 2 * per_s)))
    return need.slots


@pytest.mark.parametrize(
    ("running", "waiting", "per_s", "wanted"),
    [
        pytest.param(0, 0, 0, 0, id="idle"),
        pytest.param(1, 0, 10, 1, id="one at work"),
        pytest.param(2, 50, 10_000, 2, id="short tasks are gone in a moment"),
        pytest.param(2, 20_000, 10_000, 6, id="very many short ones are not"),
        pytest.param(2, 3, 0, 5, id="none ends: each may be long"),
        pytest.param(2, 3, 0.5, 5, id="long ones: not more slots than tasks"),
        pytest.param(2, 200, 2, 202, id="many long ones"),
    ],
)
def test_need_follows_what_waits_and_how_long_it_takes(running: int, waiting: int, per_s: float, wanted: int) -> None:
    assert _steady(slots=2, running=running, waiting=waiting, per_s=per_s) == wanted


def test_peak_is_kept_for_the_keepalive_time() -> None:
    demand = Demand(30.0)
    demand.measure(Load(0.0, 8, 8, 0, 0))

    demand.measure(Load(29.9, 8, 0, 0, 0))
    kept = demand.peak
    demand.measure(Load(30.1, 8, 0, 0, 0))

    assert kept == 8
    assert demand.peak == 0


def test_reason_is_for_people() -> None:
    demand = Demand(30.0)
    demand.measure(Load(0.0, 2, 2, 0, 0))

    need = demand.measure(Load(1.0, 2, 2, 40, 10))

    assert need.reason == "40 waiting, of 200 ms each"
