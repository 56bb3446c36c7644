"""What this plugin knows of each URL scheme before anything is imported. Imports nothing of the kernel.

kombu names its transports by alias and imports them, and the library of their server, when it connects. A missing
library is found here without importing it, so that it can be told at start.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

UNACKED, REMOVED = "server", "removed"


@dataclass(frozen=True, slots=True)
class Scheme:
    """One kombu transport.

    :param module: of the library it needs; "" = none.
    :param install: what pip is told to install for it.
    :param held: where a message is while a worker has it, by kombu's transport: `server` keeps it and delivers it again
        when nobody acknowledges it; with `removed` only the worker has it.
    """

    name: str
    module: str
    install: str
    held: str


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("azureservicebus", "azure.servicebus", "kombu[azureservicebus]", UNACKED),
        Scheme("azurestoragequeues", "azure.storage.queue", "kombu[azurestoragequeues]", REMOVED),
        Scheme("confluentkafka", "confluent_kafka", "kombu[confluentkafka]", UNACKED),
        Scheme("consul", "consul", "kombu[consul]", REMOVED),
        Scheme("etcd", "etcd", "kombu[etcd]", REMOVED),
        Scheme("gcpubsub", "google.cloud.pubsub_v1", "kombu[gcpubsub]", UNACKED),
        Scheme("kafka", "confluent_kafka", "kombu[confluentkafka]", UNACKED),
        Scheme("memory", "", "", REMOVED),
        Scheme("mongodb", "pymongo", "kombu[mongodb]", REMOVED),
        Scheme("pgmq", "psycopg", "kombu[pgmq]", UNACKED),
        Scheme("pyro", "Pyro4", "kombu[pyro]", REMOVED),
        Scheme("qpid", "qpid", "kombu[qpid]", UNACKED),
        Scheme("slmq", "softlayer_messaging", "kombu[slmq]", UNACKED),
        Scheme("sqla", "sqlalchemy", "kombu[sqlalchemy]", REMOVED),
        Scheme("sqlalchemy", "sqlalchemy", "kombu[sqlalchemy]", REMOVED),
        Scheme("zookeeper", "kazoo", "kombu[zookeeper]", REMOVED),
    )
}
"""Those that go through kombu itself; `filesystem` and `sqs` have drivers of their own."""


def scheme_of(url: str) -> str:
    """The name of the transport in a URL: `sqla` of `sqla+sqlite:///file`."""
    return url.partition("://")[0].partition("+")[0].lower()


def missing_library(scheme: Scheme) -> bool:
    """Whether the library of a transport is not installed. Imports at most the packages above it."""
    try:
        return bool(scheme.module) and importlib.util.find_spec(scheme.module) is None
    except ModuleNotFoundError:  # not even the package it is part of
        return True
