"""Open a broker for the commands that look after queues.

It is the one a worker would use: `-b`, environment, file, else the application's (asked in a short-lived process, so
that no user code runs here), else the default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kernel_worker.config import WORKER, Config, Secret
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.types import AppInfo, QueueSpec

from .composition import Composition

DEFAULT_QUEUE = "celery"


@contextmanager
def opened(composition: Composition) -> Iterator[tuple[Broker, list[str]]]:
    """The broker, connected, and the queues to look at.

    :raises BrokerUnavailable: it cannot be reached.
    """
    config, info = _with_application(composition)
    queues = _queues(config, info)
    driver = composition.registry.load_broker(composition.selection, url := _url(config))
    options: Mapping[str, Any] = (info.settings.get("broker_transport_options") if info else None) or {}
    broker = driver(
        BrokerContext(
            url.reveal(),
            f"kw-cli.{os.getpid()}",
            queues=queues,
            lease_s=config.worker.lease,
            options=options,
            may_create=False,
        )
    )
    try:
        broker.connect()
        yield broker, [queue.name for queue in queues]
    finally:
        broker.close()


def _with_application(composition: Composition) -> tuple[Config, AppInfo | None]:
    config = composition.config
    if config.worker.app is None:
        return config, None
    from kernel_worker.worker import inspect_app

    info = inspect_app(config, composition.selection, composition.registry)
    return config.with_settings(info.settings), info


def _url(config: Config) -> Secret:
    if config.worker.broker is not None:
        return config.worker.broker
    from kernel_worker.worker import DEFAULT_URL

    return DEFAULT_URL


def _queues(config: Config, info: AppInfo | None) -> tuple[QueueSpec, ...]:
    known = {queue.name: queue for queue in info.queues} if info else {}
    if config.explicit(WORKER, "queues"):
        return tuple(known.get(name) or QueueSpec(name) for name in config.worker.queue_names)
    return tuple(known.values()) or (QueueSpec(info.default_queue if info else DEFAULT_QUEUE),)
