"""Where the queues are, by URL and `broker_transport_options` with kombu's names. Imports nothing of the kernel.

sqs://                              credentials and region as boto3 finds them
sqs://KEY:SECRET@                   percent-encoded
sqs://KEY:SECRET@localhost:9324     another server: http, with the option is_secure https
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

DEFAULT_REGION = "us-east-1"
DEFAULT_VISIBILITY_S = 1800
_LEGAL = {ord(mark): "_" for mark in string.punctuation if mark not in "-_."} | {ord("."): "-"}
FIFO = ".fifo"


@dataclass(frozen=True, slots=True)
class Predefined:
    """A queue that exists, with credentials of its own."""

    url: str
    region: str | None
    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class SqsSettings:
    """How to reach SQS, and what queues are called there."""

    endpoint: str | None
    region: str | None
    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)
    is_secure: bool
    prefix: str
    visibility_s: int
    is_base64: bool
    predefined: Mapping[str, Predefined]
    attributes: Mapping[str, str]
    tags: Mapping[str, str]
    client_config: Mapping[str, Any]

    @classmethod
    def of(cls, url: str, options: Mapping[str, Any]) -> SqsSettings:
        """Read a URL and its options.

        :raises ValueError: something is wrong with them, or is not supported.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:  # it may quote the secret
            raise ValueError(
                "the URL is not sqs://[key:secret@][host[:port]]; is the secret percent-encoded?"
            ) from error
        if options.get("sts_role_arn"):
            raise ValueError("sts_role_arn is not supported: let boto3 assume the role (role_arn in its configuration)")
        is_secure = options.get("is_secure")
        scheme = "https" if is_secure else "http"
        region = options.get("region")
        return cls(
            endpoint=f"{scheme}://{host}{f':{port}' if port else ''}" if host else None,
            region=region,
            key=unquote(parts.username) if parts.username else None,
            secret=unquote(parts.password) if parts.password else None,
            is_secure=is_secure is not False,
            prefix=str(options.get("queue_name_prefix") or ""),
            visibility_s=int(float(options.get("visibility_timeout") or DEFAULT_VISIBILITY_S)),
            is_base64=bool(options.get("sqs_base64_encoding", True)),
            predefined={
                name: _predefined(name, each) for name, each in (options.get("predefined_queues") or {}).items()
            },
            attributes=dict(options.get("sqs-creation-attributes") or {}),
            tags=dict(options.get("queue_tags") or {}),
            client_config=dict(options.get("client-config") or {}),
        )

    def name(self, queue: str) -> str:
        """What SQS calls a queue: kombu's replacement of the letters that it does not allow."""
        full = self.prefix + queue
        if full.endswith(FIFO):
            return full.removesuffix(FIFO).translate(_LEGAL) + FIFO
        return full.translate(_LEGAL)


def dead_queue(queue: str) -> str:
    """Name of the queue that holds another one's dead letters."""
    return f"{queue.removesuffix(FIFO)}.kw-dead" + (FIFO if queue.endswith(FIFO) else "")


def _predefined(name: str, entry: Mapping[str, Any]) -> Predefined:
    url = entry.get("url")
    if not isinstance(url, str):
        raise ValueError(f"predefined_queues: queue {name!r} has no url")
    if url.endswith(FIFO) is not name.endswith(FIFO):
        raise ValueError(f"predefined_queues: queue {name!r} and its url must both end with {FIFO}, or none of them")
    return Predefined(url, entry.get("region"), entry.get("access_key_id"), entry.get("secret_access_key"))
