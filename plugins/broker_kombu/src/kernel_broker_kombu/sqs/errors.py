"""What SQS and the way to it can raise, in two kinds. Imports nothing of the kernel, and botocore when it is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

REFUSED_AFTER_ALL = ("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue")


class SqsAway(ConnectionError):
    """No answer, or one that asks to come back later.

    :ivar is_queue_gone: a queue does not exist (any more).
    """

    def __init__(self, text: str, *, retry_after: float | None = None, is_queue_gone: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.is_queue_gone = is_queue_gone


class SqsRefused(ConnectionError):
    """SQS answered, and said no."""


@contextmanager
def told() -> Iterator[None]:
    """Turn the library's errors into ours. Their texts name endpoints, queues and principals, and no secrets.

    :raises SqsAway, SqsRefused: in their place.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise SqsRefused("no AWS credentials: put them into the URL, or where boto3 looks for them") from error
    except ClientError as error:
        raise _answer(error.response) from error
    except BotoCoreError as error:
        raise SqsAway(f"SQS cannot be reached ({type(error).__name__})") from error


def _answer(response: object) -> SqsAway | SqsRefused:
    found = response if isinstance(response, dict) else {}
    code = str(found.get("Error", {}).get("Code", ""))
    text = f"SQS: {code}: {str(found.get('Error', {}).get('Message', ''))[:200]}"
    status = int(found.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    if code.endswith(REFUSED_AFTER_ALL):
        return SqsAway(text, is_queue_gone=True)
    if "Throttl" in code or code in ("RequestLimitExceeded", "OverLimit", "TooManyRequestsException"):
        return SqsAway(text, retry_after=1.0)
    return SqsAway(text) if status >= 500 else SqsRefused(text)
