"""What `--plugins` asks for: the grammar, and its errors with the line that mends them.

Pure: works on the entries that the registry discovered, imports no plugin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from .errors import UsageError
from .nearest import nearest

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

KINDS = ("plugins", "executor", "pools", "brokers", "publishers", "mailboxes", "revokes", "results", "apps", "control")
"""The entry-point groups are named `kernel_worker.<kind>`."""

INSTALL_ALL = "pip install kernel-worker"

_PUBLISHED: Mapping[str, Mapping[str, str]] = {
    "pools": {name: f"kernel-pool-{name}" for name in ("prefork", "solo", "threads", "gevent", "eventlet", "asyncio")},
    "brokers": {
        **{name: f"kernel-broker-{name}" for name in ("redis", "amqp", "sqlite")},
        "rediss": "kernel-broker-redis",
        "amqps": "kernel-broker-amqp",
        "pyamqp": "kernel-broker-amqp",
        "sqs": "'kernel-broker-kombu[sqs]'",
        **dict.fromkeys(
            "filesystem memory gcpubsub azureservicebus azurestoragequeues confluentkafka kafka mongodb zookeeper pyro etcd "
            "qpid consul pgmq slmq sqla sqlalchemy".split(),
            "kernel-broker-kombu",
        ),
    },
    "results": {"rediss": "kernel-result-redis"}
    | {name: f"kernel-result-{name}" for name in ("redis", "sqlite", "rpc")},
    "apps": {"native": "kernel-app", "celery": "kernel-app-celery"},
    "plugins": {name: f"kernel-{name}" for name in "app control events autoscale recycle beat limits health".split()},
}
"""Names the project publishes, and their distributions: only for hints, nothing here is ever imported."""

_WORDS = {
    **{kind: kind[:-1] for kind in ("pools", "brokers", "publishers")},
    "mailboxes": "mailbox",
    "revokes": "store of revokes",
    "results": "result backend",
    "apps": "application loader",
    "control": "control command",
}
_SINGULAR = dict.fromkeys(("brokers", "publishers", "mailboxes", "revokes"), "broker") | {
    kind: kind[:-1] for kind in ("pools", "results", "apps")
}


@dataclass(frozen=True)
class Entry:
    """One installed entry point. Reading its distribution's name or version opens a file; nothing else does."""

    kind: str
    name: str
    point: EntryPoint = field(repr=False)

    @property
    def target(self) -> str:
        """Import string, "module" or "module:attr"."""
        return f"{self.point.module}:{self.point.attr}" if self.point.attr else self.point.module

    @property
    def source(self) -> Distribution | None:
        """The distribution it belongs to; the same object for all its entries."""
        return self.point.dist

    @cached_property
    def distribution(self) -> str:
        """Name of the distribution it belongs to."""
        return self.source.name if self.source else "?"

    @cached_property
    def version(self) -> str:
        """Version of that distribution."""
        return self.source.version if self.source else "?"

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


Entries = Mapping[str, Mapping[str, Entry]]
"""By kind, then by name."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What may be used: by name, for each kind of plugin. Nothing of it has been imported.

    :param text: the `--plugins` it came from; None when everything installed is available.
    :param named_pools: pools that the text calls by name.
    """

    plugins: Mapping[str, Entry]
    executor: Mapping[str, Entry]
    pools: Mapping[str, Entry]
    brokers: Mapping[str, Entry]
    publishers: Mapping[str, Entry]
    mailboxes: Mapping[str, Entry]
    revokes: Mapping[str, Entry]
    results: Mapping[str, Entry]
    apps: Mapping[str, Entry]
    control: Mapping[str, Entry]
    text: str | None = None
    named_pools: tuple[str, ...] = ()

    def of(self, kind: str) -> Mapping[str, Entry]:
        """The entries of one kind (one of `KINDS`)."""
        found: Mapping[str, Entry] = getattr(self, kind)
        return found

    def __iter__(self) -> Iterator[Entry]:
        for kind in KINDS:
            yield from self.of(kind).values()


def parse(asked: str | None, installed: Entries, standard: Iterable[str] = ()) -> Selection:
    """The selection that `--plugins` describes.

    Tokens are separated by commas or spaces: `name` (of any kind), `kind:name`, `-name` to leave out, `+name`
    to add, `all`, `standard` (what the distribution kernel-worker brings). Without a plain token the rest
    applies to everything installed. Application loaders stay unless they are left out: no worker
    runs without one.

    :param standard: names of the distributions that `standard` stands for.
    :raises UsageError: a name that is not installed.
    """
    everything = {entry for entries in installed.values() for entry in entries.values()}
    tokens = [token for token in re.split(r"[,\s]+", asked or "") if token]
    exact = any(token[0] not in "+-" for token in tokens)
    chosen = _loaders(everything) if exact else set(everything)
    by_name: set[Entry] = set()
    for token in tokens:
        sign, name = (token[0], token[1:]) if token[0] in "+-" else ("+", token)
        if name == "all":
            found = everything
        elif name == "standard":
            wanted = {_canonical(distribution) for distribution in standard}
            found = {entry for entry in everything if _canonical(entry.distribution) in wanted}
            if not found:
                raise UsageError(
                    "'standard' stands for what kernel-worker brings, and it is not installed", hint=INSTALL_ALL
                )
        else:
            found = _named(name, installed)
            by_name |= found
            found = _with_commands(found, everything)
        chosen = chosen | found if sign == "+" else chosen - found
    return Selection(
        **{kind: {name: entry for name, entry in installed.get(kind, {}).items() if entry in chosen} for kind in KINDS},
        text=",".join(tokens) or None,
        named_pools=tuple(sorted(e.name for e in by_name & chosen if e.kind == "pools")),
    )


def _loaders(everything: set[Entry]) -> set[Entry]:
    # A loader's distribution brings modules that belong to it (commands, executor hooks): they stay together.
    sources = {id(entry.source) for entry in everything if entry.kind == "apps"}
    return {
        entry for entry in everything if id(entry.source) in sources and entry.kind in ("apps", "plugins", "executor")
    }


def _with_commands(found: set[Entry], everything: set[Entry]) -> set[Entry]:
    # A plugin's remote-control commands are nothing without it.
    sources = {id(entry.source) for entry in found if entry.kind == "plugins" and entry.source is not None}
    return found | {entry for entry in everything if entry.kind == "control" and id(entry.source) in sources}


def _named(token: str, installed: Entries) -> set[Entry]:
    kind, colon, name = token.rpartition(":")
    kind = kind.removeprefix("kernel_worker.")
    if colon and kind not in KINDS:
        close = nearest(kind, KINDS)
        raise UsageError(
            f"--plugins {token}: no kind of plugin is called {kind!r} (there are: {', '.join(KINDS)})"
            + (f". Did you mean {close}:{name}?" if close else "")
        )
    kinds = (kind,) if colon else KINDS
    named = {(k, installed[k][name].point.value) for k in kinds if name in installed.get(k, {})}
    if not named:
        raise not_installed(name, installed, kinds, _WORDS.get(kind, "plugin"))
    # One driver under several schemes (redis, rediss) is one plugin: naming one of them names it.
    return {entry for k in kinds for entry in installed.get(k, {}).values() if (k, entry.point.value) in named}


def not_installed(name: str, installed: Entries, kinds: Iterable[str], word: str) -> UsageError:
    """The error for a name that no installed plugin has: candidates, the nearest name, the line that installs it.

    :param kinds: where the name was looked for.
    :param word: what the user calls such a thing: "plugin", "pool", "broker".
    """
    kinds = tuple(kinds)
    have = sorted({known for kind in kinds for known in installed.get(kind, {})})
    published = {known: dist for kind in kinds for known, dist in _PUBLISHED.get(kind, {}).items()}
    close = "" if name in published else nearest(name, {*have, *published})
    message = f"no {word} named {name!r} is installed (have: {', '.join(have) or 'none'})"
    if close:
        message += f". Did you mean {close!r}?"
    if name in published or close in published.keys() - set(have):
        hint = f"pip install {published.get(name) or published[close]}"
    elif close:
        hint = ""
    elif len(kinds) == 1 and kinds[0] in _SINGULAR:
        hint = f"pip install kernel-{_SINGULAR[kinds[0]]}-{name}"
    else:
        hint = f"pip install kernel-{name}"
    return UsageError(message, hint=hint)


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
