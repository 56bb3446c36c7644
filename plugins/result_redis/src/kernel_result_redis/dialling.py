"""Sockets to Redis servers: name resolution, TCP or unix socket, keep-alive, TLS."""

from __future__ import annotations

import socket
import time
from typing import Any

from .errors import RedisRefused, RedisUnavailable
from .server import Server


def dial(server: Server) -> socket.socket:
    """A connected socket, within the connect timeout over all addresses of the host.

    :raises RedisUnavailable: nobody answers there.
    :raises RedisRefused: the server's certificate cannot be verified.
    """
    deadline = time.monotonic() + server.connect_timeout
    try:
        if server.path:
            return _connect(socket.AF_UNIX, server.path, server, deadline)
        error: OSError = OSError("the host has no address")
        for family, _, _, _, address in socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM):
            try:
                return _connect(family, address, server, deadline)
            except OSError as failed:
                error = failed
        raise error
    except OSError as failed:
        raise _explain_dialling(failed, server) from None


def _explain_dialling(error: OSError, server: Server) -> RedisUnavailable | RedisRefused:
    if type(error).__name__ == "SSLCertVerificationError":
        reason = str(getattr(error, "verify_message", "") or error.strerror)
        hint = "give the authority with ?ssl_ca_certs=/path/to/ca.pem"
        if "expired" in reason:
            hint = "renew the server's certificate"
        return RedisRefused(f"{server}: the server's certificate cannot be verified: {reason}", hint)
    if isinstance(error, TimeoutError):
        return RedisUnavailable(f"{server}: no connection within {server.connect_timeout:g} s")
    return RedisUnavailable(f"{server}: {error.strerror or error}")


def _connect(family: int, address: Any, server: Server, deadline: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _keep_alive(sock, server)
        sock.connect(address)
        if server.tls is not None:
            sock = server.tls.context().wrap_socket(sock, server_hostname=server.host)
        return sock
    except BaseException:
        sock.close()
        raise


def _keep_alive(sock: socket.socket, server: Server) -> None:
    """Have the system notice a dead peer after a minute, where nothing is sent meanwhile."""
    if not server.keepalive:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    chosen = {number: value for name, value in options.items() if (number := getattr(socket, name, None)) is not None}
    for number, value in (chosen | dict(server.keepalive_options)).items():
        sock.setsockopt(socket.IPPROTO_TCP, int(number), int(value))
