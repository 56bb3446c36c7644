"""How often a message whose task nobody here knows goes back, and for how long. Loop thread."""

from __future__ import annotations

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 3600.0
MAX_REMEMBERED = 10_000


class Unknown:
    """Returns of unknown tasks. The broker counts them for all workers; where it cannot, each worker does for itself.

    :param max_returns: how often one message goes back before it is dead.
    """

    def __init__(self, max_returns: int) -> None:
        self.max_returns = max_returns
        self._returns: dict[str, int] = {}

    def wait_s(self, task_id: str, returns: int) -> float | None:
        """How long a message waits until its next delivery: 1, 2, 4 … s; None = it has been returned often enough.

        :param returns: what the broker has counted.
        """
        count = max(returns, self._returns.pop(task_id, 0))
        if count >= self.max_returns:
            return None
        if len(self._returns) >= MAX_REMEMBERED:
            del self._returns[next(iter(self._returns))]  # the oldest: ids are anybody's, and must not fill the memory
        self._returns[task_id] = count + 1
        return min(FIRST_WAIT_S * 2.0 ** min(count, 30), LONGEST_WAIT_S)
