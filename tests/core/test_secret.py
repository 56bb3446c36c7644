"""Secrets: what must not be printed is not, however it is printed."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle

import pytest

from kernel_worker.secret import Secret, mask_url

PASSWORD = "hunter2"  # the word these tests look for


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        (f"redis://:{PASSWORD}@host:6379/0", "redis://:**@host:6379/0"),
        (f"amqp://guest:{PASSWORD}@host//", "amqp://guest:**@host//"),
        (f"sqs://KEY:{PASSWORD}@", "sqs://KEY:**@"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("amqp://guest@host/vhost", "amqp://guest@host/vhost"),
        ("sqlite:////home/a@b/kw.db", "sqlite:////home/a@b/kw.db"),
        (f"redis://h/0?password={PASSWORD}&db=1", "redis://h/0?password=**&db=1"),
        (f"azure://h?SharedAccessKey={PASSWORD}", "azure://h?SharedAccessKey=**"),
        ("redis://h:6379/0?client_name=a@b", "redis://h:6379/0?client_name=a@b"),
        (f"sentinel://:{PASSWORD}@a:1;sentinel://:{PASSWORD}@b:2", "sentinel://:**@a:1;sentinel://:**@b:2"),
        (f"mongodb://u:{PASSWORD}@h1:1,h2:2/db", "mongodb://u:**@h1:1,h2:2/db"),
        (f"user:{PASSWORD}@host", "user:**@host"),
    ],
)
def test_mask_url_hides_passwords_and_keeps_the_rest(url: str, masked: str) -> None:
    assert mask_url(url) == masked


@pytest.mark.parametrize("character", list("@/?#:;&=% "))
def test_mask_url_hides_unescaped_passwords(character: str) -> None:
    password = f"hun{character}ter2"

    masked = mask_url(f"redis://user:{password}@host/0")

    assert "hun" not in masked
    assert "ter2" not in masked


def test_secret_is_masked_however_it_is_printed(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(f"redis://:{PASSWORD}@host/0")

    @dataclasses.dataclass
    class Holder:
        url: Secret

    logging.getLogger("test").warning("connecting to %s and %r", secret, secret)
    printed = [str(secret), repr(secret), f"{secret}", f"{secret!r:>60}", "%s" % secret, repr([secret])]  # noqa: UP031
    printed += [repr(Holder(secret)), str(dataclasses.asdict(Holder(secret))), caplog.text, repr({"url": secret})]

    assert not [text for text in printed if PASSWORD in text]
    assert "redis://:**@host/0" in str(secret)


def test_secret_that_is_no_url_shows_nothing_of_itself() -> None:
    assert str(Secret(PASSWORD)) == "**"
    assert str(Secret("")) == ""


def test_secret_refuses_to_be_pickled() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret(PASSWORD))
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(Secret(PASSWORD))


def test_secret_compares_hashes_and_copies_by_its_text() -> None:
    secret = Secret("a")

    assert secret == Secret("a")
    assert secret != Secret("b")
    assert secret != "a"
    assert len({secret, Secret("a")}) == 1
    assert copy.deepcopy(secret) is secret
    assert copy.copy(secret) is secret
    assert secret
    assert not Secret("")
    assert secret.reveal() == "a"
