"""Finding and holding what talks to servers: publishers and result backends, by the scheme of their URL.

Both come from other distributions. A worker hands over import strings, so that no executor scans entry points; a
client looks them up once, at its first message. Needs no lock: two threads that are first together make two
objects and one is closed again, so a fork at any moment leaves nothing held.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .context import running
from .exceptions import ConfigError, OperationalError
from .message import Message, new_id
from .settings import Settings

PUBLISHERS, RESULTS = "kernel_worker.publishers", "kernel_worker.results"
MAILBOXES = "kernel_worker.mailboxes"
REVOKES = "kernel_worker.revokes"
_INSTALL = {
    REVOKES: "kernel-broker-",
    PUBLISHERS: "kernel-broker-",
    MAILBOXES: "kernel-broker-",
    RESULTS: "kernel-result-",
}
_WHAT = {REVOKES: "store of revokes", PUBLISHERS: "broker", MAILBOXES: "remote control", RESULTS: "result backend"}


def mask_url(url: str) -> str:
    """A URL without credentials and query, for messages and logs."""
    # Up to the last "@": a password may hold any character, and masking too much is the safe mistake.
    return re.sub(r"//.*@", "//**@", url, flags=re.DOTALL).partition("?")[0]


def _masked(text: str, url: str) -> str:
    """A driver's error text without the credentials of its URL."""
    text = text.replace(url, mask_url(url))
    rest, _, query = url.partition("://")[2].partition("?")
    secrets = [query, *query.split("&"), rest.rpartition("@")[0], *rest.rpartition("@")[0].split(":")]
    for secret in secrets:
        if len(secret) > 2:  # shorter ones would turn the text into noise
            text = text.replace(secret, "**")
    return text[:300]


def scheme_of(url: str) -> str:
    """The scheme of a URL, in lower case.

    :raises ConfigError: there is none.
    """
    scheme, found, _ = url.partition("://")
    if not found or not scheme:
        raise ConfigError(f"{mask_url(url)!r} is no URL (scheme://...)")
    return scheme.lower()


class Drivers:
    """Import strings by URL scheme: those handed over, else the installed entry points."""

    def __init__(self) -> None:
        self._given: dict[str, Mapping[str, str]] = {}

    def use(self, group: str, targets: Mapping[str, str]) -> None:
        """Take these import strings ("module:attribute" by scheme); entry points are not scanned then."""
        self._given[group] = dict(targets)

    def find(self, group: str, url: str) -> Callable[..., Any]:
        """The class for a URL.

        :raises ConfigError: no driver for its scheme is installed; the text has the line that installs it.
        """
        scheme = scheme_of(url)
        for name in (scheme, scheme.partition("+")[0]):
            target = self._given.get(group, {}).get(name) or _entry_point(group, name)
            if target:
                return _imported(target, f"the {_WHAT[group]} for {scheme}:// URLs")
        raise ConfigError(
            f"no {_WHAT[group]} for {scheme}:// URLs is installed (in {mask_url(url)}): "
            f"pip install {_INSTALL[group]}{scheme}"
        )


def _imported(target: str, what: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    try:
        driver: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what} ({target}) cannot be imported: {error}") from error
    return driver


def _entry_point(group: str, name: str) -> str:
    import importlib.metadata  # 20 ms: paid by a client at its first message, never by a worker

    for entry in importlib.metadata.entry_points(group=group, name=name):
        return entry.value
    return ""


class Connections:
    """The publisher and the result backend of one application, opened at first use.

    Any thread. The objects themselves open connections of their own after a fork (their contract).
    """

    def __init__(self, conf: Settings) -> None:
        self.drivers = Drivers()
        self._conf = conf
        self._open: dict[tuple[str, str], Any] = {}

    def publish(self, messages: Sequence[Any], retry: bool | None, policy: Mapping[str, Any] | None) -> None:
        """Hand messages to the broker; returns when it has them.

        :param retry: None means `task_publish_retry`.
        :param policy: overrides of `task_publish_retry_policy`.
        :raises OperationalError: the broker cannot be reached, after the retries.
        """
        urls = urls_of(self._conf.broker_write_url or self._conf.broker_url)
        if retry is None:
            retry = self._conf.task_publish_retry
        delays: Any = None
        while True:
            away: ConnectionError | None = None
            for url in urls:  # a list of URLs is for failover: the next one is tried when one is away
                publisher = self._connection(PUBLISHERS, url)
                try:
                    self._expect_replies(messages)
                    if len(messages) == 1:
                        publisher.publish(messages[0])
                    else:
                        publisher.publish_many(messages)
                    return
                except ConnectionError as error:
                    away = error
            if delays is None:
                delays = _delays({**self._conf.task_publish_retry_policy, **(policy or {})}) if retry else iter(())
            delay = next(delays, None)
            if delay is None:
                raise OperationalError(reason_of("broker", urls[-1], away)) from away
            time.sleep(delay)

    def _expect_replies(self, messages: Sequence[Any]) -> None:
        """Have the queue of answers before they are asked for, with `rpc://`. Raises ConnectionError.

        Not inside a task: it does not wait for what it sends."""
        if str(self._conf.result_backend).startswith("rpc") and running() is None:
            for reply_to in {message.properties.get("reply_to") for message in messages} - {None}:
                self.results.expect_replies(reply_to)

    def announce(self, message: Message) -> None:
        """Publish what only those who listen now need: tried once, and told to nobody when it fails."""
        try:
            url = urls_of(self._conf.broker_write_url or self._conf.broker_url)[0]
            self._connection(PUBLISHERS, url).publish(message)
        except (ConnectionError, LookupError) as error:  # LookupError: nobody listens
            import logging

            logging.getLogger("kernel_app").debug(
                "not announced: %s", type(error).__name__, extra={"action": "not_announced"}
            )

    @property
    def results(self) -> Any:
        """The result backend, or None when the application has none."""
        url = self._conf.result_backend
        if not url or url in ("disabled", "disabled://"):
            return None
        return self._open.get((RESULTS, url)) or self._connection(RESULTS, url)

    @property
    def has_results(self) -> bool:
        """Whether there is a result backend; opens nothing."""
        return bool(self._conf.result_backend) and not self._conf.result_backend.startswith("disabled")

    def call_results(self, call: Callable[[Any], Any]) -> Any:
        """Call with the result backend.

        :raises OperationalError: it cannot be reached.
        """
        backend = self.results
        try:
            return call(backend)
        except ConnectionError as error:
            raise OperationalError(reason_of("result backend", self._conf.result_backend, error)) from error

    def _connection(self, group: str, url: str) -> Any:
        found = self._open.get((group, url))
        if found is not None:
            return found
        driver = self.drivers.find(group, url)
        settings = self._conf.broker_transport_options if group == PUBLISHERS else self._conf
        try:
            made = driver(url, dict(settings))
        except ValueError as error:
            raise ConfigError(f"{mask_url(url)}: {_masked(str(error), url)}") from error
        kept = self._open.setdefault((group, url), made)
        if kept is not made:
            made.close()
        return kept

    def close(self) -> None:
        """Close what is open; it is opened again at the next use."""
        while self._open:
            try:
                _, connection = self._open.popitem()
            except KeyError:  # another thread took the last one
                return
            connection.close()


def reason_of(what: str, url: str, error: Exception | None) -> str:
    """Words for a server that cannot be reached, without credentials."""
    return f"the {what} at {mask_url(url)} cannot be reached: {_masked(str(error), url) or type(error).__name__}"


def urls_of(setting: Any) -> list[str]:
    """The URLs of a broker setting: a list, or one text with ";" between them.

    :raises ConfigError: there is none.
    """
    if not setting:
        raise ConfigError("broker_url is empty")
    if isinstance(setting, str):
        return [url for url in setting.split(";") if url]
    return list(setting)


def _delays(policy: Mapping[str, Any]) -> Any:
    """Seconds to wait before each retry of a publish (wire-protocol §10). `max_retries` None means without end."""
    import random

    most = policy.get("max_retries", 3)
    start, step, limit = (policy.get(f"interval_{name}", 0) or 0 for name in ("start", "step", "max"))
    attempt = 0
    while most is None or attempt < most:
        # Up to 10 % of jitter, so that many clients do not come back in the same moment.
        yield min(start + attempt * step, limit) * random.uniform(0.9, 1.0)
        attempt += 1


def _host_name() -> str:
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket

    return socket.gethostname()


class Identity:
    """This process as a sender: its node name and the id that replies would go to. New after a fork."""

    __slots__ = ("origin", "pid", "reply_to")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.origin = f"gen{self.pid}@{_host_name()}"
        self.reply_to = new_id()
