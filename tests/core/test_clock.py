"""The logical clock: ahead of what peers say, and led astray by none of them."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_worker.clock import LARGEST, Clock


def test_goes_on_by_one() -> None:
    clock = Clock(4)

    assert (clock.forward(), clock.value) == (5, 5)


def test_goes_beyond_a_peers_clock() -> None:
    assert Clock(4).adjust(10) == 11
    assert Clock(40).adjust(10) == 41


@pytest.mark.parametrize("claim", [None, "9", 1.5, True, -1, LARGEST, 2**100, 2**41, []], ids=repr)
def test_no_claim_of_a_peer_leads_it_astray(claim: Any) -> None:
    assert Clock(4).adjust(claim) == 5
