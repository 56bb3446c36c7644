"""URLs and options as Celery and kombu users write them."""

from __future__ import annotations

import ssl

import pytest

from kernel_result_redis.server import Server, Tls, parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Server()),
        ("redis://localhost", Server("localhost")),
        ("redis://localhost/", Server("localhost")),
        ("redis://localhost:1234/5", Server("localhost", 1234, db=5)),
        ("redis://[::1]:1234/5", Server("::1", 1234, db=5)),
        ("redis://:pa%2Fss@h/1", Server("h", db=1, password="pa/ss")),
        ("redis://user:p%40ss@h/1", Server("h", db=1, username="user", password="p@ss")),
        ("redis://h/0?db=3", Server("h", db=3)),
        ("redis://h?socket_timeout=2&socket_connect_timeout=0.5", Server("h", timeout=2, connect_timeout=0.5)),
        ("redis://h?health_check_interval=30&retry_on_timeout=True", Server("h")),
        ("redis+socket:///run/redis.sock", Server(path="/run/redis.sock")),
        ("redis+socket:///run/redis.sock?virtual_host=4", Server(path="/run/redis.sock", db=4)),
        ("unix://:secret@/run/redis.sock?db=2", Server(path="/run/redis.sock", db=2, password="secret")),
        ("rediss://h/0", Server("h", tls=Tls())),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", Server("h", tls=Tls("none"))),
        ("rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem", Server("h", tls=Tls(ca_file="/ca.pem"))),
    ],
)
def test_urls(url: str, expected: Server) -> None:
    assert parse(url) == expected


def test_options_fill_what_the_url_leaves_open() -> None:
    options = {
        "socket_timeout": 9,
        "socket_keepalive": False,
        "client_name": "x",
        "visibility_timeout": 1,
        "username": "u",
    }

    server = parse("redis://h/0?socket_timeout=3", options)

    assert server == Server("h", timeout=3, keepalive=False, client_name="x", username="u")


@pytest.mark.parametrize("given", [{"ssl_cert_reqs": ssl.CERT_OPTIONAL}, {"ssl_cert_reqs": "CERT_OPTIONAL"}])
def test_ssl_settings_of_celery(given: dict[str, object]) -> None:
    assert parse("redis://h", {"ssl": given}).tls == Tls("optional")
    assert parse("redis://h", {"ssl": True}).tls == Tls()
    assert parse("redis://h", {"ssl": False}).tls is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h:secret/0", "percent-encode"),
        ("redis://:se/cret@h:99999/0", "percent-encode|no number"),
        ("redis://:secret@h/zero", "'zero' is no number"),
        ("redis://:secret@h/-1", "is no number"),
        ("http://:secret@h/0", "http:// is no scheme"),
        ("redis://:secret@h/0?socket_timeout=soon", "socket_timeout is 'soon'"),
        ("redis://:secret@h/0?socket_timeout=0", "socket_timeout is '0'"),
        ("rediss://:secret@h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs is 'maybe'"),
    ],
)
def test_errors_name_the_value_and_no_password(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse(url)

    assert "secret" not in str(caught.value)


def test_shown_without_credentials() -> None:
    for url in ("redis://user:secret@h:1/2", "rediss://:secret@[::1]:1/2", "unix://:secret@/s?db=2"):
        assert "secret" not in f"{parse(url)} {parse(url)!r}"
    assert str(parse("rediss://:secret@[::1]:1/2")) == "rediss://[::1]:1/2"
