"""Where the server is and how to log in: from the URL and `broker_transport_options`. Opens nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

HEARTBEAT_S = 10.0
"""Seconds of silence that both sides promise not to exceed; each sends at half of it."""
_PORTS = {"amqp": 5672, "pyamqp": 5672, "amqps": 5671}
_TLS = ("ca_certs", "certfile", "keyfile", "server_hostname", "ciphers")


@dataclass(frozen=True, slots=True)
class Server:
    """One RabbitMQ address. Prints without credentials."""

    host: str
    port: int
    virtual_host: str
    user: str = field(repr=False)
    password: str = field(repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)  # for py-amqp; None = plain TCP
    login_method: str = "PLAIN"
    connect_timeout_s: float = 5.0
    deadline_s: float = 5.0
    heartbeat_s: float = HEARTBEAT_S
    client_name: str = ""
    password_file: str = ""
    delayed_queue_type: str = "quorum"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"RabbitMQ at {host}:{self.port}, vhost {self.virtual_host!r}"


class Addresses:
    """The addresses of one broker, any of which will do. Any thread."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = tuple(servers)
        self._first = 0

    def in_turn(self) -> tuple[Server, ...]:
        """All, beginning with the preferred one."""
        first = self._first
        return self._servers[first:] + self._servers[:first]

    def prefer(self, server: Server) -> None:
        """Begin with this one from now on."""
        self._first = self._servers.index(server)

    @property
    def delayed_queue_type(self) -> str:
        """Type of the queues of Celery's delayed delivery."""
        return self._servers[0].delayed_queue_type

    def __str__(self) -> str:
        return str(self._servers[self._first])


def parse_all(urls: str, options: Mapping[str, Any]) -> Addresses:
    """Read one URL or several with ";" between them; see `parse`.

    :raises ValueError: something in one makes no sense. The text holds no credentials.
    """
    return Addresses([parse(url.strip(), options) for url in urls.split(";") if url.strip()])


def parse(url: str, options: Mapping[str, Any]) -> Server:
    """Read a URL: amqp://user:password@host:port/vhost, pyamqp:// the same, amqps:// with TLS.

    The vhost is the path without its first slash, "/" when nothing is left, as with kombu.

    :param options: `broker_transport_options`; the URL's query wins.
    :raises ValueError: something in it makes no sense. The text holds no credentials.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f"the scheme {parts.scheme!r} is none of {', '.join(_PORTS)}")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError:
        raise ValueError("the port is no number from 1 to 65535") from None
    settings = {**options, **dict(parse_qsl(parts.query))}
    connect_s = _seconds(settings, "connect_timeout", 5.0) or 5.0
    return Server(
        host=parts.hostname or "localhost",
        port=port,
        virtual_host=unquote(parts.path[1:]) or "/",
        user=unquote(parts.username) if parts.username is not None else "guest",
        password=unquote(parts.password) if parts.password is not None else "guest",
        tls=_tls(settings, parts.hostname or "localhost") if parts.scheme == "amqps" or settings.get("ssl") else None,
        login_method=str(settings.get("login_method") or "PLAIN"),
        connect_timeout_s=connect_s,
        deadline_s=_seconds(settings, "read_timeout", 5.0) or 5.0,
        heartbeat_s=_seconds(settings, "heartbeat", HEARTBEAT_S),
        client_name=str(settings.get("client_name") or ""),
        password_file=str(settings.get("password_file") or ""),
        delayed_queue_type=_queue_type(settings.get("native_delayed_delivery_queue_type") or "quorum"),
    )


def _queue_type(given: object) -> str:
    if given not in ("quorum", "classic"):
        raise ValueError(f"native_delayed_delivery_queue_type {given!r} is neither quorum nor classic")
    return str(given)


def _seconds(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name)
    if value is None:
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is no number of seconds") from None
    if not 0 <= seconds < 1e6:
        raise ValueError(f"{name} must be between 0 and 1000000 seconds")
    return seconds


def _tls(settings: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Arguments for py-amqp's TLS transport. Chain and name are verified unless it is asked for otherwise."""
    import ssl

    given = settings.get("ssl")
    found: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    for name in _TLS:
        value = settings.get(f"ssl_{name}") or settings.get(name)
        if value and name not in found:
            found[name] = value
    requirement = settings.get("ssl_cert_reqs") or settings.get("cert_reqs") or found.get("cert_reqs") or "required"
    if isinstance(requirement, str):
        names = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
        short = requirement.lower().removeprefix("cert_")
        if short not in names:
            raise ValueError(f"ssl_cert_reqs {requirement!r} is none of {', '.join(names)}")
        requirement = names[short]
    found["cert_reqs"] = requirement
    if requirement != ssl.CERT_NONE:
        found.setdefault("server_hostname", host)
    return found
