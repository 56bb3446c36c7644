"""The boot step `limits`: starts before the consumer, so that nothing runs that was revoked. Loop thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kernel_worker.steps import Bootstep

if TYPE_CHECKING:
    from kernel_worker.drivers import RevokeStore
    from kernel_worker.selection import Selection
    from kernel_worker.worker import StepContext

    from .limits import Limits
    from .options import LimitsOptions

STOP_S = 1.0
"""How long the end of the worker waits for revokes to be written."""


class LimitsStep(Bootstep):
    """Its API is `Limits`."""

    name = "limits"
    requires: tuple[str, ...] = ("pool",)
    before: tuple[str, ...] = ("consumer",)

    def __init__(self) -> None:
        self._limits: Limits | None = None

    def start(self, ctx: StepContext) -> Limits:
        from .limits import Limits  # late: composing a worker does without

        options: LimitsOptions = ctx.config.section("limits")
        worker = ctx.worker
        transport = worker.app.settings.get("broker_transport_options") or {}
        stores = list(_stores(worker.selection, worker.broker_url.reveal().split(";"), transport))
        self._limits = limits = Limits(worker, options, stores)
        limits.adopt_rates()
        worker.operations.revoked_ids = limits.revoked_ids
        worker.operations.merge_revoked = limits.merge
        limits.keeper.begin()
        return limits

    def stop(self, ctx: StepContext, deadline: float) -> None:
        if self._limits is not None:
            self._limits.keeper.stop(min(deadline, time.monotonic() + STOP_S))

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, time.monotonic())


def _stores(selection: Selection, urls: Iterable[str], options: Mapping[str, Any]) -> Iterator[RevokeStore]:
    """Where the broker keeps revokes, for each of its URLs that can."""
    import importlib

    for url in urls:
        entry = selection.revokes.get(url.partition("://")[0].lower())
        if entry is not None:
            module, _, attribute = entry.target.partition(":")
            yield getattr(importlib.import_module(module), attribute)(url, options)
