"""Clients of SQS and the addresses of its queues; sending. Imports nothing of the kernel, and boto3 at first use.

Any thread: boto3's clients are made for several, and what is kept here is only ever added to.
"""

from __future__ import annotations

import base64
import binascii
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import SqsAway, SqsRefused, told
from .settings import DEFAULT_REGION, FIFO, SqsSettings

BATCH = 10
"""Entries of one call, at most."""
BATCH_BYTES = 200_000
"""Of their bodies together: SQS allows 256 KiB with everything around them (larger ones go alone)."""
CONNECT_S, READ_S = 3.0, 8.0
DELAY_S = 900
KEEP_DEAD_S = 1_209_600
"""14 days, the longest that SQS keeps anything."""


@dataclass(slots=True)
class Outgoing:
    """One message to send.

    :param text: the body as SQS gets it.
    :param attributes: as SQS takes them.
    :param sent: set when SQS has it.
    """

    text: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0
    group: str = "default"
    sent: bool = False


class Queues:
    """The queues of one account, or of several when they are predefined."""

    def __init__(self, settings: SqsSettings) -> None:
        self.settings = settings
        self._urls: dict[str, str] = {}
        self._clients: dict[str, Any] = {}

    def client(self, queue: str = "") -> Any:
        """The client for a queue."""
        predefined = self.settings.predefined.get(queue)
        found = self._clients.get(queue if predefined else "")
        if found is None:
            import boto3.session
            from botocore.config import Config

            session = boto3.session.Session(
                aws_access_key_id=(predefined and predefined.key) or self.settings.key,
                aws_secret_access_key=(predefined and predefined.secret) or self.settings.secret,
                region_name=(predefined and predefined.region) or self.settings.region,
            )
            config = Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"total_max_attempts": 2},
                max_pool_connections=32,
            ).merge(Config(**self.settings.client_config))
            with told():
                found = session.client(
                    "sqs",
                    region_name=session.region_name or DEFAULT_REGION,
                    endpoint_url=self.settings.endpoint,
                    use_ssl=self.settings.is_secure,
                    config=config,
                )
            self._clients[queue if predefined else ""] = found
        return found

    def call(self, operation: str, queue: str, **arguments: Any) -> Any:
        """Call SQS for one queue.

        :raises SqsAway, SqsRefused: see `errors`.
        """
        url, client = self.url(queue), self.client(queue)
        try:
            with told():
                return getattr(client, operation)(QueueUrl=url, **arguments)
        except SqsAway as error:
            if error.is_queue_gone:
                self._urls.pop(queue, None)
            raise

    def url(self, queue: str) -> str:
        """Address of a queue; made if there is none.

        :raises SqsRefused: queues are predefined, and this is none of them.
        """
        found = self._urls.get(queue)
        if found is None:
            found = self._urls[queue] = self._find(queue)
        return found

    def exists(self, queue: str) -> bool:
        """Whether a queue is there, without making it."""
        if queue in self._urls or queue in self.settings.predefined:
            return True
        if self.settings.predefined:
            return False
        try:
            with told():
                answer = self.client(queue).get_queue_url(QueueName=self.settings.name(queue))
        except SqsAway as error:
            if error.is_queue_gone:
                return False
            raise
        self._urls[queue] = answer["QueueUrl"]
        return True

    def _find(self, queue: str) -> str:
        if self.settings.predefined:
            if queue not in self.settings.predefined:
                raise SqsRefused(f"queue {queue!r} is not in predefined_queues")
            return self.settings.predefined[queue].url
        if self.exists(queue):
            return self._urls[queue]
        attributes = {"VisibilityTimeout": str(self.settings.visibility_s), **self.settings.attributes}
        if is_dead_queue(queue):
            attributes["MessageRetentionPeriod"] = str(KEEP_DEAD_S)
        if queue.endswith(FIFO):
            attributes["FifoQueue"] = "true"
        tags = {"tags": dict(self.settings.tags)} if self.settings.tags else {}
        with told():
            answer = self.client(queue).create_queue(QueueName=self.settings.name(queue), Attributes=attributes, **tags)
        return str(answer["QueueUrl"])

    def encode(self, raw: bytes) -> str:
        """An envelope as the body of a message.

        :raises SqsRefused: without base64 it has to be text.
        """
        if self.settings.is_base64:
            return base64.b64encode(raw).decode()
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise SqsRefused("the message is not UTF-8, and sqs_base64_encoding is off") from error

    def send(self, queue: str, messages: Sequence[Outgoing]) -> None:
        """Send messages, ten in a call. `sent` says of each that SQS has it, also when this raises.

        :raises SqsAway, SqsRefused: some could not be sent.
        """
        problem = ""
        for chunk in _chunks([message for message in messages if not message.sent]):
            entries = [self._entry(queue, number, message) for number, message in enumerate(chunk)]
            answer = self.call("send_message_batch", queue, Entries=entries)
            for done in answer.get("Successful", ()):
                chunk[int(done["Id"])].sent = True
            for failed in answer.get("Failed", ()):
                problem = f"SQS: {failed.get('Code')}: {str(failed.get('Message', ''))[:200]}"
                if failed.get("SenderFault"):
                    raise SqsRefused(problem)
        if problem:
            raise SqsAway(problem)

    def _entry(self, queue: str, number: int, message: Outgoing) -> dict[str, Any]:
        entry: dict[str, Any] = {"Id": str(number), "MessageBody": message.text}
        if message.attributes:
            entry["MessageAttributes"] = dict(message.attributes)
        if queue.endswith(FIFO):
            entry |= {"MessageGroupId": message.group, "MessageDeduplicationId": str(uuid.uuid4())}
        elif message.delay_s > 0:
            entry["DelaySeconds"] = min(DELAY_S, math.ceil(message.delay_s))
        return entry


def is_dead_queue(queue: str) -> bool:
    """Whether this queue holds dead letters."""
    return queue.removesuffix(FIFO).endswith(".kw-dead")


def decode(text: str) -> bytes:
    """The envelope in a body. Peers may have base64 switched off, so what is none is taken as it is."""
    raw = text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        return raw


def _chunks(messages: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    chunk: list[Outgoing] = []
    size = 0
    for message in messages:
        length = len(message.text) + 2_000
        if chunk and (len(chunk) == BATCH or size + length > BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += length
    if chunk:
        yield chunk
