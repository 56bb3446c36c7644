"""Where a Redis server is and how to reach it: URLs and options as Celery and kombu users write them.

Standard library only. Knows no password once printed: `str(server)` holds none, and no error message does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    import ssl

TIMEOUT_S = 5.0  # of every call: a server that is silent for longer is treated as gone
_VERIFY = {"required": 2, "optional": 1, "none": 0}  # ssl.CERT_…, without importing ssl (5 MB) where it is not used


@dataclass(frozen=True, slots=True)
class Tls:
    """How to secure a connection. By default the server's chain and name are verified.

    :param verify: "required", "optional" or "none", the values of Celery's `ssl_cert_reqs`.
    """

    verify: str = "required"
    check_hostname: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def context(self) -> ssl.SSLContext:
        """The context to wrap sockets with. Raises OSError, naming the files, when one cannot be used."""
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.check_hostname = self.check_hostname and self.verify == "required"
            context.verify_mode = ssl.VerifyMode(_VERIFY[self.verify])
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:
            files = ", ".join(each for each in (self.ca_file, self.cert_file, self.key_file) if each)
            raise OSError(error.errno, f"TLS files {files}: {error.strerror or error}") from None
        return context


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis server and database.

    :param path: of a unix socket; host and port are not used then.
    :param connect_timeout: seconds until a new connection must be up, handshake included.
    :param timeout: seconds a call may take.
    :param keepalive_options: socket option number to value, as in kombu's `socket_keepalive_options`.
    :param password_file: where the password stands; read for each new connection.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Tls | None = None
    connect_timeout: float = TIMEOUT_S
    timeout: float = TIMEOUT_S
    keepalive: bool = True
    keepalive_options: Mapping[int, int] = field(default_factory=dict)
    client_name: str = ""
    password_file: str = ""

    def current_password(self) -> str:
        """The password, read anew from its file where there is one: a secret that was replaced works from then on.

        :raises OSError: the file cannot be read.
        """
        if not self.password_file:
            return self.password
        with open(self.password_file, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")

    def __str__(self) -> str:
        """The address without credentials, for people."""
        if self.path:
            return f"redis+socket://{self.path}?virtual_host={self.db}"
        scheme = "rediss" if self.tls else "redis"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{self.db}"


def parse(url: str, options: Mapping[str, Any] | None = None) -> Server:
    """Read redis://, rediss://, redis+socket:// and unix:// URLs.

    :param options: kombu's transport options; those of the URL's query win. Names that mean nothing here are
        passed over, since an unmodified Celery configuration must do.
    :raises ValueError: the URL or an option makes no sense. The message holds no credentials.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        query = dict(parse_qsl(parts.query))
    except ValueError:
        raise ValueError(
            "a Redis URL looks like redis://user:password@host:6379/0; percent-encode special characters "
            "of the password"
        ) from None  # the original's text may hold the password
    known = {**(options or {}), **query}
    is_socket = parts.scheme in ("redis+socket", "socket", "unix")
    if not is_socket and parts.scheme not in ("redis", "rediss"):
        raise ValueError(f"{parts.scheme}:// is no scheme of this driver (redis, rediss, redis+socket, unix)")
    database = query.get("virtual_host", query.get("db", "" if is_socket else parts.path))
    tls = _tls(known, required=parts.scheme == "rediss")
    return Server(
        host=unquote(parts.hostname or "127.0.0.1"),
        port=port or 6379,
        path=unquote((parts.netloc.rpartition("@")[2] + parts.path) if is_socket else ""),
        db=_database(database),
        username=unquote(parts.username or str(known.get("username") or "")),
        password=unquote(parts.password or str(known.get("password") or "")),
        tls=tls,
        connect_timeout=_seconds(known, "socket_connect_timeout"),
        timeout=_seconds(known, "socket_timeout"),
        keepalive=_truth(known.get("socket_keepalive"), True),
        keepalive_options=_numbers(known.get("socket_keepalive_options")),
        client_name=str(known.get("client_name") or ""),
        password_file=str(known.get("password_file") or ""),
    )


def parse_all(urls: str, options: Mapping[str, Any]) -> tuple[Server, ...]:
    """Read one URL or several with ";" between them; see `parse`."""
    servers = tuple(parse(url.strip(), options) for url in urls.split(";") if url.strip())
    if not servers:
        raise ValueError("the URL is empty")
    return servers


def _database(text: str) -> int:
    number = text.strip("/")
    if not number:
        return 0
    if not number.isdigit():
        raise ValueError(f"Redis database {number[:40]!r} is no number; a URL ends in /0 or another number")
    return int(number)


def _seconds(options: Mapping[str, Any], name: str) -> float:
    value = options.get(name)
    if value is None or value == "":
        return TIMEOUT_S
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f"{name} is {value!r}, but must be a number of seconds above 0")
    return seconds


def _numbers(value: Any) -> dict[int, int]:
    """Socket options; kombu's form is a mapping of numbers, which a URL cannot express."""
    return {int(key): int(number) for key, number in value.items()} if isinstance(value, Mapping) else {}


def _truth(value: Any, default: bool) -> bool:
    if value is None or value == "":
        return default
    return str(value).lower() not in ("0", "false", "no", "off", "none")


def _tls(options: Mapping[str, Any], required: bool) -> Tls | None:
    """TLS settings from `ssl_…` options, or from a mapping `ssl` of them as in `broker_use_ssl`."""
    given = options.get("ssl")
    nested = given if isinstance(given, Mapping) else {}
    if not (required or nested or given is True):
        return None
    settings = {**options, **nested}
    return Tls(
        verify=_verify(settings.get("ssl_cert_reqs", settings.get("cert_reqs"))),
        check_hostname=_truth(settings.get("ssl_check_hostname"), True),
        ca_file=settings.get("ssl_ca_certs") or None,
        cert_file=settings.get("ssl_certfile") or None,
        key_file=settings.get("ssl_keyfile") or None,
    )


def _verify(value: Any) -> str:
    """Celery writes CERT_REQUIRED, required or ssl.CERT_REQUIRED, which is 2."""
    if value is None:
        return "required"
    if isinstance(value, int):
        text = {number: name for name, number in _VERIFY.items()}.get(int(value), str(value))
    else:
        text = str(value).lower().removeprefix("cert_")
    if text not in _VERIFY:
        raise ValueError(f"ssl_cert_reqs is {value!r}, but must be one of: required, optional, none")
    return text
