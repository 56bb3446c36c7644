"""Find the installed plugins, select among them, and load what was chosen.

Discovery reads entry points once and imports nothing. stevedore loads what is chosen by name (pool, broker,
control commands); pluggy composes the modules of the group `kernel_worker.plugins`, see `hooks`.
Runs in the kernel process, before the loop starts; executors are told import strings and scan nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .early import DEFAULT_POOL
from .errors import PluginError, UsageError
from .secret import Secret, mask_url
from .selection import INSTALL_ALL, KINDS, Entries, Entry, Selection, not_installed, parse

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .drivers import Broker, ControlCommand, Pool
    from .hooks import Hooks

__all__ = ["Command", "Entry", "HealthCheck", "Registry", "Selection"]

GROUP = "kernel_worker."


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command of `kw` that a plugin contributes.

    :param target: import string of a click command, "module:attr"; imported when the command is used.
    :param help: one line for `kw --help`.
    """

    name: str
    target: str
    help: str = ""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One thing that can be wrong with a running worker.

    :param check: returns "" or what is wrong; runs on the loop thread and must not block.
    """

    name: str
    check: Callable[[], str]


class Registry:
    """The installed plugins. Made by `discover`; tests may pass entries of their own."""

    def __init__(self, entries: Entries, duplicates: dict[tuple[str, str], list[Entry]] | None = None) -> None:
        self.entries = entries
        self._duplicates = duplicates or {}

    @classmethod
    def discover(cls) -> Registry:
        """Read the entry points of all installed distributions. Imports no plugin, raises nothing for a bad one."""
        entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        duplicates: dict[tuple[str, str], list[Entry]] = {}
        for point in _entry_points():
            kind = point.group.removeprefix(GROUP)
            entry = Entry(kind, point.name, point)
            first = entries[kind].setdefault(point.name, entry)
            if first is not entry:
                duplicates.setdefault((kind, point.name), [first]).append(entry)
        return cls(entries, duplicates)

    @property
    def names(self) -> frozenset[str]:
        """Names of everything installed: each may have a section in the settings file."""
        return frozenset(name for entries in self.entries.values() for name in entries)

    def select(self, asked: str | None = None) -> Selection:
        """What `--plugins` describes; see `selection.parse` for the grammar.

        :raises UsageError: a name that is not installed, or that two distributions claim.
        """
        wants_standard = asked is not None and "standard" in asked
        selection = parse(asked, self.entries, _standard_distributions() if wants_standard else ())
        for (kind, name), claimants in self._duplicates.items():
            if name in selection.of(kind):
                who = sorted(claimant.distribution for claimant in claimants)
                raise UsageError(
                    f"two distributions claim the name {name!r} in {GROUP}{kind}: {' and '.join(who)}",
                    hint=f"pip uninstall {who[-1]}",
                )
        return selection

    def require_runnable(self, selection: Selection) -> None:
        """Check that there is something of each kind that every worker needs.

        :raises UsageError: says what is missing and how to get it.
        """
        needed = {"pools": "pool", "brokers": "broker", "apps": "application loader"}
        missing = [word for kind, word in needed.items() if not self.entries.get(kind)]
        if missing:
            raise UsageError(
                f"this is the kernel alone: no {', no '.join(missing)} is installed"
                if len(missing) == len(needed)
                else f"no {' and no '.join(missing)} is installed",
                hint=INSTALL_ALL,
            )
        for kind, word in needed.items():
            if not selection.of(kind):
                raise self._not_selected(selection, kind, word)

    def choose_pool(self, selection: Selection, wanted: str | None) -> str:
        """The pool to use: the wanted one, else the one that `--plugins` names, else prefork, else the only one.

        :param wanted: from `-P`, the environment or the file.
        :raises UsageError: it is not installed, not selected, or the choice is not clear.
        """
        if wanted is not None:
            if wanted in selection.pools:
                return wanted
            if wanted in self.entries["pools"]:
                raise self._not_selected(selection, "pools", "pool", wanted)
            raise not_installed(wanted, self.entries, ("pools",), "pool")
        if not selection.pools:
            self.require_runnable(selection)
        names = selection.named_pools or tuple(sorted(selection.pools))
        if len(names) == 1:
            return names[0]
        if DEFAULT_POOL in names and not selection.named_pools:
            return DEFAULT_POOL
        how = f"--plugins {selection.text} selects" if selection.text else "there are"
        raise UsageError(f"{how} {len(names)} pools: {', '.join(names)}", hint=f"choose one: -P {names[0]}")

    def load_pool(self, selection: Selection, name: str) -> type[Pool]:
        """Import a pool's driver.

        :raises UsageError: see `choose_pool`.
        :raises PluginError: it fails to import, or was written for another version of the contract.
        """
        driver: type[Pool] = self._load_driver(selection.pools[self.choose_pool(selection, name)])
        return driver

    def broker_entry(self, selection: Selection, url: str | Secret) -> Entry:
        """The broker driver for a URL, by its scheme.

        :raises UsageError: there is none for that scheme, installed and selected.
        """
        return self._by_scheme(selection, "brokers", "broker", url)

    def result_entry(self, selection: Selection, url: str | Secret) -> Entry:
        """The same for result backends."""
        return self._by_scheme(selection, "results", "result backend", url)

    def load_broker(self, selection: Selection, url: str | Secret) -> type[Broker]:
        """Import the broker driver for a URL.

        :raises UsageError: see `broker_entry`.
        :raises PluginError: see `load_pool`.
        """
        driver: type[Broker] = self._load_driver(self.broker_entry(selection, url))
        return driver

    def check(self, entry: Entry) -> None:
        """Import one entry and hold it against its contract's version, as using it would.

        :raises PluginError: what using it would raise.
        """
        from . import drivers, hookspecs

        found = load(entry)
        if entry.kind in ("pools", "brokers", "apps"):
            check_api(entry, getattr(found, "api", None), drivers.API, "api")
        elif entry.kind == "plugins":
            check_api(entry, getattr(found, "kw_api", None), hookspecs.API, "kw_api")
        elif entry.kind == "control" and not isinstance(found, drivers.ControlCommand):
            raise PluginError(f"control command {entry} is {found!r}, not a ControlCommand")

    def import_strings(self, selection: Selection, kind: str) -> dict[str, str]:
        """Name to import string of the selected entries of a kind, for executors: "module:attr"."""
        return {name: entry.target for name, entry in selection.of(kind).items()}

    def control_commands(self, selection: Selection) -> list[ControlCommand]:
        """Import the selected remote-control commands of the group `kernel_worker.control`, by name.

        :raises PluginError: one fails to import, or is no `ControlCommand`.
        """
        from .drivers import ControlCommand

        found = []
        for entry in sorted(selection.control.values(), key=lambda entry: entry.name):
            command = load(entry)
            if not isinstance(command, ControlCommand):
                raise PluginError(
                    f"control command {entry} is {command!r}, not a ControlCommand",
                    hint=f"mend it, or leave it out: --plugins=-{entry.name}",
                )
            found.append(command)
        return found

    def load_plugins(self, selection: Selection, *, builtin: bool = True) -> Hooks:
        """Import the selected plugin modules and make their hooks callable.

        :param builtin: with the kernel's own steps; not needed for commands that start no worker.
        :raises PluginError: a module fails to import, claims another API, or implements a hook that does not exist.
        """
        from .hooks import Hooks

        hooks = Hooks()
        if builtin:
            from . import builtin as steps  # late: it imports all rooms of a running worker

            hooks.register(steps, "builtin", "builtin (kernel-worker-core)")
        for name, entry in sorted(selection.plugins.items(), reverse=True):  # so that they are called by name
            hooks.register(load(entry), name, entry)
        hooks.check()
        return hooks

    def _load_driver(self, entry: Entry) -> Any:
        from .drivers import API

        driver = load(entry)
        check_api(entry, getattr(driver, "api", None), API, "api")
        return driver

    def _by_scheme(self, selection: Selection, kind: str, word: str, url: str | Secret) -> Entry:
        plain = url.reveal() if isinstance(url, Secret) else url
        scheme, separator, _ = plain.partition("://")
        if not separator:
            raise UsageError(
                f"the {word} URL {str(Secret(plain))!r} has no scheme", hint="example: redis://localhost:6379/0"
            )
        for name in (scheme.lower(), scheme.lower().partition("+")[0]):
            if name in selection.of(kind):
                return selection.of(kind)[name]
            if name in self.entries[kind]:
                raise self._not_selected(selection, kind, word, name, mask_url(plain))
        raise not_installed(scheme.lower(), self.entries, (kind,), word)

    def _not_selected(self, selection: Selection, kind: str, word: str, name: str = "", url: str = "") -> UsageError:
        installed = ", ".join(sorted(self.entries[kind]))
        add = name or min(self.entries[kind], key=lambda known: (known != DEFAULT_POOL, known))
        leaves_out = f"--plugins {selection.text} leaves out the {word} {name!r}"
        message = leaves_out if name else f"--plugins {selection.text} selects no {word}"
        excluded = f"-{add}" in (selection.text or "").split(",")
        return UsageError(
            f"{message}, which {url} needs" if url else f"{message} (installed: {installed})",
            hint=f"take -{add} away" if excluded else f"add it: --plugins {selection.text},{add}",
        )


def check_api(entry: Entry, found: object, wanted: int, attribute: str) -> None:
    """Refuse a plugin that was written for another version of the contract.

    :raises PluginError: names plugin, distribution and both versions.
    """
    if found == wanted:
        return
    says = (
        f"was written for API {found}"
        if found is not None
        else f"does not say for which API it was written ({attribute})"
    )
    raise PluginError(
        f"plugin {entry} {says}; this kernel has API {wanted}", hint=f"pip install -U {entry.distribution}"
    )


def load(entry: Entry) -> Any:
    """Import one entry point through stevedore.

    :raises PluginError: whatever went wrong while it was imported; the cause is chained.
    """
    from stevedore.driver import DriverManager  # late: costs 30 ms
    from stevedore.extension import ExtensionManager

    group = GROUP + entry.kind
    # Seeded, so that stevedore neither scans again nor uses its cache on disk, which is stale for up to
    # two minutes after an editable install changed.
    ExtensionManager.ENTRY_POINT_CACHE[group] = [entry.point]

    def failed(manager: object, point: object, error: BaseException) -> None:
        raise error

    try:
        manager: Any = DriverManager(group, entry.name, on_load_failure_callback=failed)
        return manager.driver
    except (Exception, SystemExit) as error:  # a plugin's import may raise anything; the user is told which one it was
        raise PluginError(
            f"plugin {entry} in {GROUP}{entry.kind} cannot be imported: {type(error).__name__}: {error}",
            hint=f"mend it, or leave it out: --plugins=-{entry.name}",
        ) from error


def _entry_points() -> Iterator[EntryPoint]:
    import importlib.metadata

    seen = set()
    for distribution in importlib.metadata.distributions():
        # The first on the path hides later ones of the same name. `name` would parse a file for each; the
        # standard library knows the name from the folder's, too, but does not say so in public.
        name = getattr(distribution, "_normalized_name", None) or distribution.name
        if name in seen:
            continue
        seen.add(name)
        if GROUP not in (distribution.read_text("entry_points.txt") or ""):
            continue
        for point in distribution.entry_points:
            if point.group.removeprefix(GROUP) in KINDS and point.group.startswith(GROUP):
                yield point


def _standard_distributions() -> list[str]:
    import importlib.metadata
    import re

    try:
        required = importlib.metadata.requires("kernel-worker") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in required]
